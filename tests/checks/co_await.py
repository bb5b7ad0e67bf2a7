#!/usr/bin/env python3
"""Finds co_await statements that g++ 12 miscompiles.

A capturing lambda, or a braced aggregate, that is created in the same full expression as co_await
is destroyed twice (GCC bug 99576 and its kin). Naming it first avoids that.
Run from the top of the checkout.
"""
import re
import sys

from sources import sources

CAPTURING = re.compile(
    r"\[(?!\[)([^\[\]]*)\]\s*(?:\([^()]*\)\s*)?(?:mutable\s*|noexcept\s*)*(?:->\s*[\w:<>,\s&*]+)?\{")
BRACED = re.compile(r"[(,=]\s*(?:[A-Za-z_][\w:]*(?:<[^;{}]*>)?)?\s*\{[^{}]")


def without_comments_and_strings(text):
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", lambda m: "\n" * m.group().count("\n"), text, flags=re.S)
    return re.sub(r'"(?:\\.|[^"\\])*"', '""', text)


def expression_at(text, start):
    """The rest of the full expression: up to `;` at this brace depth."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] in "({[":
            depth += 1
        elif text[i] in ")}]":
            depth -= 1
            if depth < 0:
                return text[start:i]
        elif text[i] == ";" and depth == 0:
            return text[start:i]
    return text[start:]


def captures(lambda_introducer):
    parts = [c.strip() for c in lambda_introducer.split(",")]
    return any(c and not c.startswith("&") and c != "this" for c in parts)


def findings_in(path):
    with open(path, encoding="utf-8") as source:
        text = without_comments_and_strings(source.read())
    for found in re.finditer(r"\bco_await\b", text):
        expression = expression_at(text, found.end())
        inner = CAPTURING.search(expression)
        if inner and captures(inner.group(1)):
            what = "a capturing lambda"
        elif not inner and BRACED.search(expression):
            what = "a braced temporary"
        else:
            continue
        line = text.count("\n", 0, found.start()) + 1
        yield f"{path}:{line}: co_await with {what} in the same expression: name it first"


def main():
    findings = [f for path in sources() for f in findings_in(path)]
    print("\n".join(findings) if findings else "no such co_await")
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
