"""x"""


def report(p):
    pass
