"""Why a grid cannot be trained: said before any work of a recipe, and by QatNetwork of a plan."""

CODE_BOOK = "cannot be trained yet; use uniform weights"
SCALE = "is not free; train with bits.scale: float"
DYNAMIC = "grids found at run time cannot be trained; use activations: 8"
