import subprocess
import sys


def test_where_a_version_comes_from_is_told_without_torch():
    """Importing it would take a third of the time that somebody waits for an answer."""
    modules = ", ".join(f"dfm_mlflow.registry.{m}" for m in ("describe", "history", "aliases"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
