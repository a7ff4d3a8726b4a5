"""Numbers as people read them: 1.25 ms, 3.4 GFLOP, 12 MB."""


def seconds(value: float) -> str:
    """Three significant digits, in the unit that leaves one to three before the point."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if value >= size:
            return f"{_digits(value / size)} {unit}"
    return f"{_digits(value / 1e-9)} ns" if value >= 5e-13 else "0"


def flops(value: int | None) -> str:
    return _scaled(value, "FLOP")


def num_bytes(value: int | None) -> str:
    return _scaled(value, "B")


def percent(fraction: float) -> str:
    return f"{100 * fraction:.0f} %"


def _scaled(value: int | None, unit: str) -> str:
    if value is None:
        return "unknown"
    scaled, prefixes = float(value), " kMGTPE"
    while scaled >= 999.5 and len(prefixes) > 1:
        scaled, prefixes = scaled / 1000, prefixes[1:]
    return f"{_digits(scaled)} {prefixes[0].strip()}{unit}"


def _digits(value: float) -> str:
    text = (
        f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
    )
    return text.rstrip("0").rstrip(".") if "." in text else text
