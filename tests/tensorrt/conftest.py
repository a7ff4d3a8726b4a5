"""Torch-TensorRT without a GPU. `tests/tensorrt/install.sh` makes the environment."""

import cuda_stand_in

cuda_stand_in.install()
