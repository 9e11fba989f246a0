"""Windows of layers: the consecutive layers that an analysis changes together.

A residual stream carries an activation past a single layer, so the paper substitutes and patches several consecutive
layers at once.
"""

from driftlens.errors import DriftlensError

__all__ = ["default_window", "scaled_window", "window_layers"]


def window_layers(layer: int, window: int, n_layers: int) -> range:
    """The layers of a window of `window` layers around `layer`, clipped at both ends of the model.

    They are max(0, l − ⌊k/2⌋) … min(L, l + ⌈k/2⌉) − 1, so an odd window is centred and an even one extends one layer
    further down than up. The window always contains `layer` itself.
    """
    if window < 1:
        raise DriftlensError(f"window is {window}; expected at least 1 layer")
    if not 0 <= layer < n_layers:
        raise DriftlensError(f"layer {layer} is out of range; the model has layers 0 to {n_layers - 1}")
    return range(max(0, layer - window // 2), min(n_layers, layer + (window + 1) // 2))


def scaled_window(paper: int, n_layers: int) -> int:
    """Scale a window of `paper` of GPT-J's 28 layers to another depth: round(paper · n_layers / 28), at least 1."""
    return max(1, round(paper * n_layers / 28))


def default_window(n_layers: int) -> int:
    """The default window of contaminating substitution: the paper's 6 layers, scaled; patching scales 10 layers."""
    return scaled_window(6, n_layers)
