import subprocess
import sys


def test_importing_the_package_loads_neither_torch_nor_transformers():
    code = "import sys, reward_models; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
