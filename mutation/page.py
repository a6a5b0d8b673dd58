def write_page(r):
    return "", []


def unexplained(r):
    return ""
