"""Figures without pyplot: nothing global to set up or to clean up."""

from helpers.errors import missing_package


def new_figure(width: float, height: float, why: str, rows: int | None = None, columns: int | None = None):
    """A matplotlib figure of so many inches and its axes: one, or, with `rows` and `columns`, an array of them.

    Raises DemoBertError, naming `why` it is needed, where matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_package("matplotlib", "matplotlib", why) from error
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot() if rows is None else figure.subplots(rows, columns, squeeze=False)
