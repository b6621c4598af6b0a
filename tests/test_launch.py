"""The scripts: they parse, and set-up is skipped when .venv is up to date."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "launch").glob("*.sh")), ROOT / ".ci" / "run"]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_script_parses_and_holds_no_path_of_a_machine(script):
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "/home/" not in script.read_text() and "/root/" not in script.read_text()


def run_setup(folder, extras=""):
    """Sources launch/setup.sh in a copy of the project's front, with a `python3` that only notes what it is asked."""
    return subprocess.run(
        ["bash", "-c", f'PYTHON=./python; . ./setup.sh "{extras}"'], cwd=folder, text=True, capture_output=True
    )


def test_setup_runs_once_and_again_when_the_pins_or_extras_change(tmp_path):
    (tmp_path / "setup.sh").write_text((ROOT / "launch" / "setup.sh").read_text())
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text("one\n")
    fake = tmp_path / "python"
    fake.write_text(
        "#!/bin/bash\n"
        'if [ "$1" = "-m" ]; then echo made >> made; mkdir -p "$3/bin"; printf "#!/bin/bash\\n" > "$3/bin/pip";'
        ' cp "$3/bin/pip" "$3/bin/python"; chmod +x "$3"/bin/*; fi\n'
    )
    fake.chmod(0o755)
    made = lambda: (tmp_path / "made").read_text().count("made")  # noqa: E731
    assert run_setup(tmp_path).returncode == 0 and made() == 1
    assert run_setup(tmp_path).returncode == 0 and made() == 1
    assert run_setup(tmp_path, "dev").returncode == 0 and made() == 2
    assert run_setup(tmp_path).returncode == 0 and made() == 2, "a .venv with more extras is up to date"
    (tmp_path / "constraints.txt").write_text("two\n")
    assert run_setup(tmp_path, "dev").returncode == 0 and made() == 3


def test_pins_name_no_address_and_cover_every_direct_dependency():
    import tomllib

    pins = (ROOT / "constraints.txt").read_text()
    assert "://" not in pins and "@" not in pins
    names = {line.split("==")[0].lower().replace("_", "-") for line in pins.splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in needed:
        name = requirement.split(";")[0].split(">")[0].split("=")[0].split("[")[0].strip().lower().replace("_", "-")
        assert name in names or name == "tensorflow", requirement
