"""The style of tables on a terminal: no frame, numbers aligned to the right, nothing cut off.

100 columns   batch   standard tok/s      60 columns   batch   standard
                  1             67.4                              tok/s
                                                           1       67.4
"""

from collections.abc import Collection

from rich.box import SIMPLE_HEAD
from rich.table import Table


def plain_table(*columns: str, left: Collection[int] = (0,)) -> Table:
    """A table without rows.

    Args:
        columns: headers. In a narrow terminal, headers and cells wrap.
        left: indices of the columns of text, aligned to the left.
    """
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number in left else "right", overflow="fold")
    return table
