"""The figures that the paper prints (Ma et al. 2019, Tables 1 to 7), by gamma and column; accuracies in per cent."""

from typing import Any

Row = dict[str, Any]

TABLE_1 = {"FC3": 3, "VGG-16": 16, "ResNet18": 9, "ResNet50": 16}
WEIGHTS_IN_MILLIONS = {"FC3": 1.79, "ResNet18": 6.27, "ResNet50": 11.32}  # "original" of Tables 3, 6 and 7


def _rows(names: str, *values: tuple[float, ...]) -> dict[float, Row]:
    return {row[0]: dict(zip(names.split(), row[1:], strict=True)) for row in values}


TABLE_2 = {
    "random": _rows(
        "ratio top1 seconds",
        (0.8, 32.1, 56.8, 1264),
        (0.9, 33.9, 59.8, 1351),
        (1.0, 34.9, 58.2, 1126),
        (1.1, 30.8, 55.5, 1329),
        (1.2, 41.7, 61.2, 1017),
    ),
    "fabolas": _rows(
        "ratio top1 seconds",
        (0.8, 30.2, 60.4, 39316),
        (0.9, 30.7, 61.6, 38249),
        (1.0, 32.7, 61.8, 46876),
        (1.1, 32.1, 61.1, 35159),
        (1.2, 34.0, 63.0, 42296),
    ),
    "paper": _rows(
        "ratio top1 seconds",
        (0.8, 31.2, 60.2, 1120),
        (0.9, 34.2, 62.2, 1277),
        (1.0, 34.3, 62.9, 1378),
        (1.1, 35.9, 63.5, 1660),
        (1.2, 35.2, 63.4, 1420),
    ),
}
FABOLAS_P_VALUE = 0.0008
TABLE_3 = _rows(
    "weights ratio top1 seconds",
    (0.001, 0.05, 2.62, 67.97, 10.33),
    (0.002, 0.05, 2.62, 67.99, 9.25),
    (0.005, 0.06, 3.09, 76.22, 13.73),
    (0.01, 0.21, 11.96, 97.80, 71.19),
    (0.02, 0.36, 20.12, 97.78, 79.54),
)
TABLE_4 = _rows(
    "weights ratio top1 seconds",
    (0.9, 0.16, 8.69, 97.74, 181.17),
    (1.0, 0.17, 9.23, 97.73, 378.65),
    (1.1, 0.20, 11.20, 97.73, 365.53),
)
TABLE_5 = (
    {"network": "original", "stage": "original", "top1": 68.50, "top5": 88.68, "ratio": "100"},
    {"network": "tensor decomposition (td)", "stage": "convolutions", "top1": 59.86, "top5": 83.01, "ratio": ""},
    {"network": "td, fine-tuned", "stage": "tune", "top1": 69.11, "top5": 88.69, "ratio": ""},
    {"network": "td + svd", "stage": "linear", "top1": 65.41, "top5": 87.17, "ratio": ""},
    {"network": "td + svd, fine-tuned", "stage": "tune-again", "top1": 68.69, "top5": 88.41, "ratio": "9.31"},
    {"network": "td + svd + pruning", "stage": "prune", "top1": 68.16, "top5": 88.15, "ratio": "7.4"},
    {"network": "Han et al.", "stage": "", "top1": 68.66, "top5": 89.12, "ratio": "7.5"},
)
TABLE_6 = _rows(
    "weights ratio top1 top5 seconds",
    (0.00006, 1.08, 17.19, 36.81, 65.72, 172.0),
    (0.00008, 1.26, 20.13, 45.49, 72.68, 188.9),
    (0.0001, 1.75, 27.90, 58.18, 82.16, 248.1),
    (0.0003, 2.67, 42.65, 67.33, 87.61, 365.6),
    (0.0005, 3.15, 50.21, 68.16, 88.15, 515.0),
)
TABLE_7 = _rows(
    "weights ratio top1 top5 seconds",
    (0.00006, 2.03, 17.96, 48.93, 73.51, 815.4),
    (0.00008, 2.99, 26.45, 70.16, 89.73, 855.3),
    (0.0001, 3.12, 27.60, 71.20, 90.33, 804.6),
    (0.0003, 3.89, 34.34, 74.16, 91.96, 1802.6),
    (0.0005, 4.48, 39.55, 74.83, 92.28, 2204.9),
)
ORIGINALS: dict[str, Row] = {
    "fc3": {"weights": 1.79, "ratio": 100, "top1": 98.20},
    "resnet18": {"weights": 6.27, "ratio": 100, "top1": 69.76, "top5": 89.08},
    "resnet50": {"weights": 11.32, "ratio": 100, "top1": 76.13, "top5": 92.86},
}
OF_GAMMAS = {"resnet18": TABLE_6, "resnet50": TABLE_7}
