"""All rows of the zoo."""

from zoo.decoders import DECODERS
from zoo.encoder_decoders import ENCODER_DECODERS
from zoo.encoders import ENCODERS
from zoo.handwritten import HANDWRITTEN
from zoo.modalities import MODALITIES
from zoo.recurrent import RECURRENT
from zoo.vision import VISION

FAMILIES = [
    *DECODERS,
    *RECURRENT,
    *ENCODERS,
    *ENCODER_DECODERS,
    *VISION,
    *MODALITIES,
    *HANDWRITTEN,
]
