"""What ``drloss reproduce`` may be asked for. This file imports nothing, so that ``--help`` answers at once."""

SCALES = ("paper", "laptop")
"""The paper's presets on the paper's data, or the preset ``cpu`` on any data."""
CONTROLS = "controls"
TABLES = {
    "table1": "Table 1. Effect of λ₊ and λ₋ (ResNet-50, 1×)",
    "table2": "Table 2. Comparison of loss functions (ResNet-50, 1×)",
    "table3": "Table 3. Comparison of pairing strategies (ResNet-50, 1×)",
    "table4": "Table 4. Comparison with the state of the art",
    "table5": "Table 5. Comparison of score thresholds (ResNet-50, 1×)",
    "table6": "Table 6. Comparison of input scales (ResNet-50, 1×)",
    "table7": "Table 7. Comparison on VOC2007",
    CONTROLS: "Controls of ours, and what others published: rows that the paper does not have",
}
"""Titles of the tables, by their names on the command line."""
FIGURES: dict[str, tuple[str, ...]] = {"figure1": ("dr",), "figure4": ("ce", "focal", "dr"), "figure5": ("dr",)}
"""Losses of the figures that show the scores of trained detectors."""
EQUATIONS = ("figure2", "figure3")
"""Figures drawn from equations alone."""
WHAT = (*sorted((*FIGURES, *EQUATIONS)), *TABLES, "all")
"""Everything that can be asked for."""
POINTS = 10_000_000
"""Points of each Gaussian in Figure 2."""
