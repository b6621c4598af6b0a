import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmjax.losses.matching import hard_negatives, matching_accuracy, matching_loss, nearest_negatives

B, M = 4, 6
SIMILARITY = np.random.default_rng(0).normal(size=(B, M)).astype(np.float32)
POSITIVES = np.zeros((B, M), bool)
POSITIVES[[0, 1, 2, 3, 0], [0, 1, 2, 3, 4]] = True


def test_draws_follow_the_softmax_over_what_is_wrong():
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    drawn = jax.jit(jax.vmap(lambda key: hard_negatives(SIMILARITY, POSITIVES, key, 0.5)))(keys)
    weights = np.exp(SIMILARITY / 0.5) * ~POSITIVES
    texts = np.stack([np.bincount(drawn.text[:, b], minlength=M) for b in range(B)]) / draws
    images = np.stack([np.bincount(drawn.image[:, m], minlength=B) for m in range(M)]) / draws
    np.testing.assert_allclose(texts, weights / weights.sum(1, keepdims=True), atol=0.015)
    np.testing.assert_allclose(images, (weights / weights.sum(0)).T, atol=0.015)
    assert drawn.text_valid.all() and drawn.image_valid.all()
    assert not texts[POSITIVES].any() and not images.T[POSITIVES].any()


def test_invalid_rows_are_never_drawn_and_find_nothing():
    image_valid, text_valid = np.array([1, 1, 1, 0], bool), np.array([1, 1, 1, 1, 0, 0], bool)
    similarity = np.where(image_valid[:, None] & text_valid, SIMILARITY, -np.inf)
    for seed in range(30):
        drawn = hard_negatives(similarity, POSITIVES, jax.random.key(seed))
        assert text_valid[drawn.text[:3]].all() and image_valid[drawn.image[:4]].all()
        np.testing.assert_array_equal(drawn.text_valid, image_valid)
        np.testing.assert_array_equal(drawn.image_valid, text_valid)


def test_a_row_whose_every_partner_is_right_finds_nothing():
    positives = POSITIVES.copy()
    positives[1] = True
    drawn = hard_negatives(SIMILARITY, positives, jax.random.key(0))
    np.testing.assert_array_equal(drawn.text_valid, [True, False, True, True])


def test_no_gradient_reaches_the_similarity_or_the_temperature():
    def chosen(similarity, temperature):
        drawn = hard_negatives(similarity, POSITIVES, jax.random.key(0), temperature)
        return jnp.take(jnp.arange(M, dtype=jnp.float32), drawn.text).sum() + 0.0 * similarity.sum() + 0.0 * temperature

    gradients = jax.grad(chosen, (0, 1))(SIMILARITY, 0.5)
    assert not any(np.asarray(g).any() for g in gradients)


def test_two_logits_and_their_difference_give_the_same_loss():
    two = np.random.default_rng(1).normal(size=(5, 2)).astype(np.float32)
    labels, valid = np.array([1, 0, 1, 1, 0]), np.array([1, 1, 1, 1, 0], bool)
    wanted = optax.softmax_cross_entropy_with_integer_labels(two, labels)[valid].sum()
    for logits in (two, two[:, 1] - two[:, 0]):
        loss, weight = matching_loss(logits, labels, valid)
        np.testing.assert_allclose(loss, wanted, rtol=1e-6)
        right = (two.argmax(1) == labels)[valid].sum()
        assert weight == 4 and matching_accuracy(logits, labels, valid) == (right, 4)


def test_zero_logits_cost_log_two():
    loss, weight = matching_loss(jnp.zeros(6), jnp.array([0, 1, 0, 1, 0, 1]))
    np.testing.assert_allclose(loss / weight, np.log(2), rtol=1e-6)


def test_nearest_negatives_equal_a_walk_backwards():
    rng = np.random.default_rng(3)
    for share in (0.0, 0.3, 0.8):
        allowed = rng.random((7, 7)) < share
        found = nearest_negatives(jnp.asarray(allowed))
        for row in range(7):
            texts = [m for k in range(7) if allowed[row, m := (row - k) % 7]]
            pictures = [b for k in range(7) if allowed[b := (row - k) % 7, row]]
            assert bool(found.text_valid[row]) == bool(texts) and bool(found.image_valid[row]) == bool(pictures)
            assert not texts or int(found.text[row]) == texts[0]
            assert not pictures or int(found.image[row]) == pictures[0]
