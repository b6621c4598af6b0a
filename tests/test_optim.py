"""The optimizer against NumPy and closed forms; patterns and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax import config as config_lib
from mmjax import optim
from mmjax.errors import ConfigError
from mmjax.optim import OptimizerConfig, build_optimizer

RNG = np.random.default_rng(0)
SHAPES = {
    "patch_encoder/block_00/mlp/kernel": (4, 6),
    "patch_encoder/block_00/mlp/bias": (6,),
    "patch_encoder/patches/kernel": (2, 2, 3, 4),
    "text_encoder/embedding/table": (5, 4),
    "text_encoder/block_00/mlp/kernel": (4, 4),
    "scale": (),
}


def arrays(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}


def run(config: OptimizerConfig, steps: int = 3, total: int = 10, names=tuple(SHAPES)):
    params = {n: jnp.asarray(v) for n, v in arrays(0).items() if n in names}
    tx, schedule = build_optimizer(config, params, total)
    state = tx.init(params)
    for step in range(steps):
        gradients = {n: jnp.asarray(v) for n, v in arrays(step + 1).items() if n in names}
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    return params, state, schedule


def numpy_adamw(config: OptimizerConfig, decay: dict, scale: dict, steps: int, rates) -> dict[str, np.ndarray]:
    """Loshchilov and Hutter (2019), alg. 2, with the decay times the learning rate as optax does; b2 = 0.95."""
    params = {n: v.astype(np.float64) for n, v in arrays(0).items()}
    mean = {n: 0.0 for n in params}
    square = {n: 0.0 for n in params}
    for t in range(1, steps + 1):
        gradients = arrays(t)
        norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values()))
        for n in params:
            g = gradients[n] * min(1.0, config.clip / norm)
            mean[n] = 0.9 * mean[n] + 0.1 * g
            square[n] = 0.95 * square[n] + 0.05 * g**2
            step = mean[n] / (1 - 0.9**t) / (np.sqrt(square[n] / (1 - 0.95**t)) + 1e-8)
            params[n] = params[n] - rates[t - 1] * scale[n] * (step + config.weight_decay * decay[n] * params[n])
    return params


@pytest.mark.parametrize("second", [0.0, 0.3], ids=["factory mask", "several factors"])
def test_adamw_with_decay_and_scale_patterns_equals_numpy(second):
    config = OptimizerConfig(
        lr=0.1,
        warmup="2 steps",
        weight_decay=0.2,
        args={"b2": 0.95},
        clip=0.5,
        decay=((".*/kernel", 1.0), (".*/table", second)),
        lr_scale=(("patch_encoder/.*", 0.1),),
    )
    decay = {n: 1.0 if n.endswith("kernel") else second if n.endswith("table") else 0.0 for n in SHAPES}
    scale = {n: 0.1 if n.startswith("patch_encoder") else 1.0 for n in SHAPES}
    rates = [0.05, 0.1, 0.1, 0.1 * 0.5 * (1 + np.cos(np.pi / 8))]
    expected = numpy_adamw(config, decay, scale, 4, rates)
    found, _, schedule = run(config, steps=4)
    np.testing.assert_allclose([schedule(i) for i in range(4)], rates, rtol=1e-6)
    for name in SHAPES:
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize(
    "name", ["adamw", "sgd", "lion", "adafactor", "lamb", "muon", "adam", "rmsprop", "lars", "adopt"]
)
def test_rule_runs_and_its_decay_shrinks_only_what_the_pattern_names(name):
    plain, _, _ = run(OptimizerConfig(name=name, lr=0.01, warmup="0 steps"))
    decayed, _, _ = run(OptimizerConfig(name=name, lr=0.01, warmup="0 steps", weight_decay=0.5))
    for parameter in SHAPES:
        assert np.isfinite(decayed[parameter]).all()
        assert not np.array_equal(plain[parameter], arrays(0)[parameter]), parameter
        assert np.array_equal(plain[parameter], decayed[parameter]) != parameter.endswith("kernel"), parameter


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop", "adafactor", "muon", "lion"])
def test_decay_is_decoupled_and_times_the_learning_rate(name):
    """One step from the same point: the difference is lr * decay * parameter whatever the rule does with gradients."""
    config = {"name": name, "lr": 0.01, "warmup": "0 steps"}
    plain, _, _ = run(OptimizerConfig(**config), steps=1)
    decayed, _, _ = run(OptimizerConfig(**config, weight_decay=0.5), steps=1)
    kernel = "text_encoder/block_00/mlp/kernel"
    np.testing.assert_allclose(plain[kernel] - decayed[kernel], 0.01 * 0.5 * arrays(0)[kernel], atol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_l2_is_a_part_of_the_gradient_before_it_is_clipped(clip):
    found, _, _ = run(OptimizerConfig(name="sgd", lr=0.1, warmup="0 steps", clip=clip, l2=0.3), steps=1)
    start, gradients = arrays(0), arrays(1)
    gradients = {n: g + 0.3 * start[n] * n.endswith("kernel") for n, g in gradients.items()}
    norm = np.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in gradients.values()))
    for name, g in gradients.items():
        expected = start[name] - 0.1 * g * (min(1.0, clip / norm) if clip else 1.0)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_zero_weight_decay_means_zero_for_rules_with_another_default():
    ours, _, _ = run(OptimizerConfig(name="adamw", lr=0.1, warmup="0 steps"))
    adam, _, _ = run(OptimizerConfig(name="adam", lr=0.1, warmup="0 steps"))
    assert all(np.array_equal(ours[n], adam[n]) for n in SHAPES)


@pytest.mark.parametrize(
    ("schedule", "closed"),
    [
        ("cosine", lambda p, after: 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * p))),
        ("linear", lambda p, after: 1 - 0.9 * p),
        ("constant", lambda p, after: 1.0),
        ("rsqrt", lambda p, after: np.sqrt(10 / (10 + after))),
    ],
)
def test_schedule_equals_its_closed_form(schedule, closed):
    end = 0.1 if schedule in ("cosine", "linear") else 0.0
    made = optim.build_schedule(OptimizerConfig(lr=2.0, schedule=schedule, end_lr=end), 110, 10)
    expected = [2.0 * (s + 1) / 10 for s in range(10)] + [2.0 * closed((s - 10) / 100, s - 10) for s in range(10, 111)]
    np.testing.assert_allclose([made(s) for s in range(111)], expected, rtol=1e-5, atol=1e-7)


def test_frozen_parameters_take_no_optimizer_state():
    trainable, frozen = optim.split(list(SHAPES), OptimizerConfig(freeze=("patch_encoder/.*", "scale")))
    assert frozen == [n for n in SHAPES if n.startswith("patch_encoder") or n == "scale"]
    assert sorted(trainable + frozen) == sorted(SHAPES)
    _, state, _ = run(OptimizerConfig(), names=trainable)
    moments = sum(np.size(leaf) for leaf in jax.tree.leaves(state) if np.ndim(leaf))
    assert moments == 2 * sum(np.prod(SHAPES[n], dtype=int) for n in trainable)


def test_pattern_without_a_match_names_the_nearest_group_and_its_size():
    names = [f"patch_encoder/block_{i:02d}/{k}" for i in range(76) for k in ("kernel", "bias")] + ["decoder/kernel"]
    with pytest.raises(ConfigError) as error:
        optim.split(names, OptimizerConfig(freeze=("image_encoder/.*",)))
    assert str(error.value) == (
        "config.optimizer.freeze: the pattern 'image_encoder/.*' matches no parameter. "
        "Did you mean 'patch_encoder/.*' (152 parameters)?"
    )


def test_patterns_match_whole_names():
    with pytest.raises(ConfigError, match="matches no parameter"):
        optim.split(["patch_encoder/kernel", "decoder/kernel"], OptimizerConfig(freeze=("patch_encoder",)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "muonn"}, r"config.optimizer.name: optax has no optimizer 'muonn'. Did you mean 'muon'"),
        ({"name": "scale_by_adam"}, "optax has no optimizer"),
        ({"args": {"beta2": 0.9}}, "config.optimizer.args.beta2: adamw has no such argument; it takes b1, b2, eps"),
        ({"args": {"weight_decay": 0.1}}, "set config.optimizer.weight_decay instead"),
        ({"name": "lbfgs"}, "cannot take a step from gradients and a schedule alone"),
        ({"name": "dpsgd"}, "needs the gradient of each example"),
        ({"lr_scale": (("vision/.*", 0.1),)}, "lr_scale: the pattern 'vision/.*' matches no trainable parameter"),
        ({"lr_scale": ((".*", 0.1), ("scale", 1.0))}, "taken by an earlier pattern"),
        ({"lr_scale": (("scale", 0.0),)}, "config.optimizer.freeze"),
        ({"decay": ((".*/weight", 1.0),)}, "decay: the pattern '.*/weight' matches no trainable parameter"),
        ({"decay": (("(", 1.0),)}, "no regular expression"),
        ({"warmup": "1 epoch"}, "config.optimizer.warmup"),
        ({"schedule": "constant", "end_lr": 0.1}, "has no end"),
        ({"lr": -1.0}, "expected 0 or more"),
        ({"name": "prodigy", "weight_decay": 0.1}, "one factor for all parameters"),
        ({"name": "lamb", "weight_decay": 0.1, "decay": ((".*/kernel", 1.0), (".*/bias", 0.5))}, "one factor beside 0"),
    ],
)
def test_what_cannot_be_meant_is_an_error(config, message):
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in SHAPES.items()}
    with pytest.raises(ConfigError, match=message):
        build_optimizer(OptimizerConfig(**config), params, 10)


def test_default_decay_pattern_is_checked_only_where_decay_is_asked_for():
    bias = {"head/bias": jax.ShapeDtypeStruct((3,), jnp.float32)}
    build_optimizer(OptimizerConfig(), bias, 10)
    with pytest.raises(ConfigError, match="matches no trainable parameter"):
        build_optimizer(OptimizerConfig(weight_decay=0.1), bias, 10)


def test_freezing_everything_is_an_error():
    with pytest.raises(ConfigError, match="nothing is left to train"):
        optim.split(list(SHAPES), OptimizerConfig(freeze=(".*",)))


@pytest.mark.parametrize("given", [{"a/.*": 0.1}, [["a/.*", 0.1]], "[('a/.*', 0.1)]", "{'a/.*': 0.1}"])
def test_config_takes_patterns_as_dict_pairs_or_flag(given):
    built = config_lib.build(OptimizerConfig, {"lr_scale": given}, "config.optimizer")
    assert built.lr_scale == (("a/.*", 0.1),)
    assert config_lib.build(OptimizerConfig, config_lib.plain(built), "config.optimizer") == built


def test_coverage_table_counts_parameters_and_shares():
    params = {n: jax.ShapeDtypeStruct(s, jnp.float32) for n, s in SHAPES.items()}
    config = OptimizerConfig(
        freeze=("patch_encoder/patches/.*",), weight_decay=0.1, lr_scale=(("text_encoder/.*", 0.5),)
    )
    rows = [line.split() for line in optim.coverage_table(config, params).splitlines()]
    assert ["patch_encoder/block_00", "30", "yes", "1", "0..0.1"] in rows
    assert ["patch_encoder/patches", "48", "no", "-", "-"] in rows
    assert ["text_encoder/embedding", "20", "yes", "0.5", "0"] in rows
    assert rows[-1][:4] == ["all", "115", "58.3", "%"]


BLOCKS = [f"tower/transformer/block_{i:02d}/mlp/kernel" for i in range(3)]
OTHERS = ["tower/stem/kernel", "tower/transformer/final_norm/scale", "tower/output", "head/kernel"]


def test_layer_decay_is_a_power_of_the_depth():
    found = optim.layer_factors([*BLOCKS, *OTHERS], (("tower/.*", 0.5),), "w")
    assert [found[n] for n in BLOCKS] == [0.25, 0.5, 1.0]
    assert [found[n] for n in OTHERS] == [0.125, 1.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match="'head/.*' matches no block of a stack"):
        optim.layer_factors([*BLOCKS, *OTHERS], (("head/.*", 0.5),), "w")


def test_layer_decay_and_scale_multiply_the_updates():
    names = [*BLOCKS, *OTHERS]
    shapes = {n: jnp.zeros(()) for n in names}
    config = OptimizerConfig(
        name="sgd", lr=1.0, schedule="constant", warmup="0 steps", clip=0.0, layer_decay=(("tower/.*", 0.5),),
        lr_scale=(("tower/stem/.*", 4.0),),
    )  # fmt: skip
    tx, _ = build_optimizer(config, shapes, 10)
    updates, _ = tx.update({n: jnp.ones(()) for n in names}, tx.init(shapes), shapes)
    assert [-float(updates[n]) for n in names] == [0.25, 0.5, 1.0, 0.5, 1.0, 1.0, 1.0]
    with pytest.raises(ConfigError, match=r"layer_decay: '.\*' has factor 1.5, expected one in"):
        build_optimizer(OptimizerConfig(layer_decay=((".*", 1.5),)), shapes, 10)


def test_only_what_train_names_is_trained_and_freeze_wins():
    names = list(SHAPES)
    biases, _ = optim.split(names, OptimizerConfig(train=(".*/bias", "scale")))
    assert biases == ["patch_encoder/block_00/mlp/bias", "scale"]
    assert optim.split(names, OptimizerConfig(train=(".*/bias", "scale"), freeze=("scale",)))[0] == biases[:1]
    factors = ["text_encoder/block_00/mlp/lora_a", "text_encoder/block_00/mlp/lora_b"]
    assert optim.split([*names, *factors], OptimizerConfig(), factors)[0] == factors
    assert optim.split([*names, *factors], OptimizerConfig(train=("scale",)), factors)[0] == ["scale", *factors]
    with pytest.raises(ConfigError, match="config.optimizer.train: the pattern 'head/.*' matches no parameter"):
        optim.split(names, OptimizerConfig(train=("head/.*",)))


@pytest.mark.parametrize(
    ("name", "args", "step"),
    [
        ("sgd", {"momentum": 0.9}, lambda g, h: 0.9 * g + h),  # Sutskever et al. (2013), eq. 1
        ("lion", {"b1": 0.9, "b2": 0.99}, lambda g, h: np.sign(0.9 * 0.01 * g + 0.1 * h)),  # Chen et al. (2023), alg. 2
    ],
)
def test_second_step_equals_the_closed_form(name, args, step):
    config = OptimizerConfig(name=name, lr=0.1, schedule="constant", warmup="0 steps", clip=0.0, args=args)
    one, two = (run(config, steps=n)[0] for n in (1, 2))
    for n in SHAPES:
        expected = one[n] - 0.1 * step(arrays(1)[n], arrays(2)[n])
        np.testing.assert_allclose(two[n], expected, atol=1e-6, err_msg=n)
