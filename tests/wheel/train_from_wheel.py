"""A stranger's first minutes: the built wheel, installed outside the checkout, trains there.

    make test-wheel

Builds the wheel (which asks the package registry for hatchling), installs it alone into a new
environment laid over `.venv`, whose torch it borrows but whose editable install it does not see,
and calls `dsv3` from an empty folder. Where something is wrong, a sentence and exit code 1.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
import venv
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
STEPS = 4


def main() -> None:
    """Build, install, look, train."""
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    with tempfile.TemporaryDirectory(prefix="dsv3-wheel-") as scratch:
        folder = Path(scratch)
        wheel = build(folder / "wheels")
        must_carry(wheel)
        python = install(wheel, folder / "environment")
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()

        package = run(elsewhere, python, "-c", "import dsv3_plugin; print(dsv3_plugin.__file__)")
        require(package.startswith(str(folder)), f"the package is read from {package.strip()}")
        dsv3 = python.with_name("dsv3")
        said = run(elsewhere, dsv3, "--version")
        require(version in said, f"dsv3 --version says {said!r} and pyproject.toml {version}")
        planned = run(elsewhere, dsv3, "plan", "deepseek-v3", "--json")
        require("684489845504" in planned, f"dsv3 plan deepseek-v3 says {planned}")
        run(elsewhere, dsv3, "plan", "pretrain/tiny", "--html", "plan.html")
        require((elsewhere / "plan.html").is_file(), "dsv3 plan --html writes no page")

        run(elsewhere, dsv3, "train", "pretrain/tiny", f"training.steps={STEPS}")
        lines = (elsewhere / "runs/tiny/metrics.jsonl").read_text().splitlines()
        losses = [record["loss"] for record in map(json.loads, lines) if "loss" in record]
        require(len(losses) == STEPS, f"{len(losses)} steps were trained, not {STEPS}")
        require(losses[-1] < losses[0], f"the loss does not fall: {losses}")
    fall = f"loss {losses[0]:.3f} → {losses[-1]:.3f}"
    print(f"{wheel.name}: installed on its own, {STEPS} steps, {fall}")


def build(folder: Path) -> Path:
    """The project's wheel, built into `folder`."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(CHECKOUT, *pip, "wheel", "-qq", "--no-deps", "--wheel-dir", folder, CHECKOUT)
    (wheel,) = folder.glob("*.whl")
    return wheel


def must_carry(wheel: Path) -> None:
    """Every recipe, cluster, template and licence travels along; tests do not."""
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, kind in (
        ("recipes", "*.yaml"), ("launch/clusters", "*.yaml"), ("launch/templates", "*.j2"),
    ):  # fmt: skip
        for data in (CHECKOUT / folder).rglob(kind):
            shipped = f"dsv3_plugin/_shipped/{data.relative_to(CHECKOUT).as_posix()}"
            require(shipped in names, f"{shipped} is not in {wheel.name}")
    for text in ("LICENSE", "THIRD_PARTY_NOTICES.md"):
        require(
            any(n.endswith(f"licenses/{text}") for n in names), f"{text} is not in {wheel.name}"
        )
    outside = {name for name in names if not name.startswith("dsv3_plugin")}
    require(not outside, f"{wheel.name} would install {sorted(outside)}")


def install(wheel: Path, environment: Path) -> Path:
    """The Python of a new environment that has the wheel, and everything else from this one's."""
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(environment, *pip, "install", "-qq", "--no-deps", wheel)
    site = Path(
        run(environment, python, "-c", "import site; print(site.getsitepackages()[0])").strip()
    )
    # Below its own packages; `.pth` files there, the editable install's among them, are not read.
    (site / "base.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(environment, *pip, "check")  # what the wheel says it needs is what the lock installs
    return python


def run(cwd: Path, *command: str | Path) -> str:
    """What a command prints; its whole output and the end of it all where it fails."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=environment, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    require(done.returncode == 0, f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout


def require(holds: bool, otherwise: str) -> None:
    """Stop here with a sentence where something does not hold."""
    if not holds:
        sys.exit(f"test-wheel: {otherwise}")


if __name__ == "__main__":
    main()
