"""An mdBook preprocessor: links out of the book lead to the repository.

A page may link to `../README.md`, which a forge shows but the book does not contain. In
the book, such a link becomes an address below `git-repository-url`.
"""

import json
import posixpath
import re
import sys

LINK = re.compile(r"\]\((\.\./[^)\s]*)\)")


def rewrite(page, path, repository):
    """The page's text with each link that leaves the book made absolute. Code is left alone."""

    def absolute(found):
        target, mark, anchor = found[1].partition("#")
        inside = posixpath.normpath(posixpath.join("docs", posixpath.dirname(path), target))
        if inside.startswith("docs/"):
            return found[0]
        return f"]({repository}/blob/main/{inside}{mark}{anchor})"

    parts = page.split("```")
    return "```".join(part if number % 2 else LINK.sub(absolute, part) for number, part in enumerate(parts))


def walk(items, repository):
    for item in items:
        chapter = item.get("Chapter") if isinstance(item, dict) else None
        if chapter:
            chapter["content"] = rewrite(chapter["content"], chapter["path"] or "", repository)
            walk(chapter["sub_items"], repository)


def main():
    if len(sys.argv) > 1 and sys.argv[1] == "supports":
        return
    context, book = json.load(sys.stdin)
    repository = context["config"]["output"]["html"]["git-repository-url"].rstrip("/")
    # Up to mdBook 0.4 the list is called sections.
    walk(book.get("items") or book.get("sections"), repository)
    json.dump(book, sys.stdout)


if __name__ == "__main__":
    main()
