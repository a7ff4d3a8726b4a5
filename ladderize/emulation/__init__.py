"""Links that this machine does not have.

stand_in.py    one device stands in for all ranks; a kernel lasts as long as a transfer
"""
