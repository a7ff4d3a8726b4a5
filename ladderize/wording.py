"""Words that reports and messages share."""


def counted(number: int, one: str, many: str = "") -> str:
    """ "1 block", "2 blocks", "2 passes": `many` where an s behind `one` is not the plural."""
    return f"{number} {one if number == 1 else many or one + 's'}"
