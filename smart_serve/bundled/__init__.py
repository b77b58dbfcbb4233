"""The bundled model: a small LLaVA that talks about coloured shapes, and its MSD drafter.

Scripts here draw the pictures, write the questions, train both models and measure them. The
trained weights lie in `target/` and `drafter/`; `example.png` is the quick start's picture.
"""

from pathlib import Path

BUNDLED_FOLDER = Path(__file__).parent
TARGET_FOLDER = BUNDLED_FOLDER / "target"
DRAFTER_FOLDER = BUNDLED_FOLDER / "drafter"
EXAMPLE_PICTURE = BUNDLED_FOLDER / "example.png"
EXAMPLE_QUESTION = "Describe the picture."
