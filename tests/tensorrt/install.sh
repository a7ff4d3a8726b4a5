#!/usr/bin/env bash
# Makes the environment of the tests beside it: Torch-TensorRT for RTX where there is no GPU.
#
#     tests/tensorrt/install.sh FOLDER && FOLDER/bin/pytest tests/tensorrt
#
# The packages of TensorRT are installed without what they depend on, which is CUDA. Of
# Torch-TensorRT the libraries of its C++ runtime are taken out, which cannot be loaded without it;
# what is left of it is Python, which converts and builds.
set -euo pipefail
cd "$(dirname "$0")/../.."
folder=${1:?where to make the environment}

torch_tensorrt=2.13.0      # of the same minor version as torch in constraints.txt
tensorrt=1.5.0.114         # TensorRT-RTX, as Torch-TensorRT's own metadata asks for

python3 -m venv --clear "$folder"
pip="$folder/bin/pip install -q --no-compile"
$pip -c constraints.txt -e '.[demo]' pytest pytest-timeout pytest-xdist packaging psutil dllist
$pip --no-deps "torch-tensorrt-rtx==$torch_tensorrt" "tensorrt-rtx-cu13==$tensorrt" \
  "tensorrt-rtx-cu13-libs==$tensorrt" "tensorrt-rtx-cu13-bindings==$tensorrt"
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
rm "$site"/torch_tensorrt/lib/*.so
