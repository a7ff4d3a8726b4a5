"""Torch-TensorRT where there is no GPU. `tests/tensorrt/install.sh` makes the environment."""

import cuda_stand_in

cuda_stand_in.install()
