#!/usr/bin/env python3
"""Writes simple statements of Python files with their syntax trees: a JSON object a line, `tokens` and `spans`.

    scripts/python-trees.py FOLDER OUT.jsonl [--least 4] [--most 24] [--count 4000]

Tokens are those of `tokenize`; strings and numbers are written as STRING and NUMBER, and names as NAME, but for
keywords, so that the vocabulary is that of the grammar. Spans are those of the nodes of `ast` with two tokens or more,
from 0, the end behind. Statements with other statements in them and those that are the same as one before are left
out; so are files that do not parse. Files are read in the order of their names.
"""

import argparse
import ast
import io
import json
import keyword
import pathlib
import tokenize

SKIPPED = {tokenize.NL, tokenize.NEWLINE, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def word(token):
    if token.type == tokenize.STRING:
        return "STRING"
    if token.type == tokenize.NUMBER:
        return "NUMBER"
    if token.type == tokenize.NAME and not keyword.iskeyword(token.string):
        return "NAME"
    return token.string


def statements(source):
    """Each simple statement as (tokens, spans)."""
    lines = source.splitlines(keepends=True)
    tree = ast.parse(source)
    tokens = [t for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in SKIPPED]
    starts = {t.start: index for index, t in enumerate(tokens)}
    ends = {t.end: index + 1 for index, t in enumerate(tokens)}

    def place(line, column):
        # `ast` counts bytes, `tokenize` characters.
        return line, len(lines[line - 1].encode()[:column].decode())

    def span(node):
        if getattr(node, "end_lineno", None) is None:
            return None
        start = starts.get(place(node.lineno, node.col_offset))
        end = ends.get(place(node.end_lineno, node.end_col_offset))
        return None if start is None or end is None else (start, end)

    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt) or hasattr(node, "body"):
            continue
        whole = span(node)
        if whole is None:
            continue
        first, last = whole
        found = {span(part) for part in ast.walk(node)} - {None}
        inside = sorted((a - first, b - first) for a, b in found if first <= a and b <= last and b - a > 1)
        crossing = any(a < c < b < d for a, b in inside for c, d in inside)
        if not crossing:
            yield [word(t) for t in tokens[first:last]], inside


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--least", type=int, default=4)
    parser.add_argument("--most", type=int, default=24)
    parser.add_argument("--count", type=int, default=4000)
    args = parser.parse_args()
    files = sorted(args.folder.rglob("*.py"))
    if not files:
        parser.error(f"no .py file in {args.folder}")
    seen = set()
    with args.out.open("w") as out:
        for path in files:
            try:
                found = list(statements(path.read_text(encoding="utf-8")))
            except (SyntaxError, ValueError, tokenize.TokenError):
                continue
            for tokens, spans in found:
                key = tuple(tokens)
                if not args.least <= len(tokens) <= args.most or key in seen:
                    continue
                seen.add(key)
                out.write(json.dumps({"tokens": tokens, "spans": spans}) + "\n")
                if len(seen) == args.count:
                    return


if __name__ == "__main__":
    main()
