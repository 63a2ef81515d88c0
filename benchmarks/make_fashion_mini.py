"""Make the files of `fashion-mini` from the whole of Fashion-MNIST: python benchmarks/make_fashion_mini.py [FOLDER]"""

import sys
from pathlib import Path

import glocal.data.builtin as builtin

if __name__ == "__main__":
    whole = builtin.fashion_mnist(sys.argv[1] if len(sys.argv) > 1 else None)
    builtin.write_mini(whole, Path(builtin.__file__).parent)
