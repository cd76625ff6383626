"""Checks every relative link and anchor in the Markdown pages of the repository.

Prints each broken link with its page and line, and exits with 1 if there is one.
Links to other hosts are not followed.

    python3 tests/links/check_links.py [FOLDER]
"""

import pathlib
import re
import sys
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parents[2]
SKIPPED_FOLDERS = {".git", "target", "node_modules"}
FENCE = re.compile(r"^\s*(```+|~~~+)")
CODE_SPAN = re.compile(r"(`+)(?:(?!\1).)+?\1")
INLINE_LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
REFERENCE = re.compile(r"^\s{0,3}\[[^\]]+\]:\s*<?(\S+?)>?(?:\s|$)")
ELEMENT_LINK = re.compile(r"<(?:a|img)\b[^>]*\b(?:href|src)=\"([^\"]+)\"", re.IGNORECASE)
ELEMENT_ANCHOR = re.compile(r"<[a-z]+\b[^>]*\b(?:id|name)=\"([^\"]+)\"", re.IGNORECASE)
HEADING = re.compile(r"^\s{0,3}#{1,6}\s+(.*?)\s*#*\s*$")
SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:|^//")


def prose(text):
    """The page's lines with their numbers, without blocks of code."""
    fence = None
    for number, line in enumerate(text.splitlines(), start=1):
        mark = FENCE.match(line)
        if fence:
            if mark and mark[1].startswith(fence):
                fence = None
        elif mark:
            fence = mark[1]
        else:
            yield number, line


def links(text):
    """Yields each link of a page with its line. A link may begin on one line and end on the next."""
    kept = {number: CODE_SPAN.sub("``", line) for number, line in prose(text)}
    last = max(kept, default=0)
    joined = "\n".join(kept.get(number, "") for number in range(1, last + 1))
    for pattern in (INLINE_LINK, ELEMENT_LINK):
        for found in pattern.finditer(joined):
            yield joined.count("\n", 0, found.start(1)) + 1, found[1]
    for number, line in kept.items():
        found = REFERENCE.match(line)
        if found:
            yield number, found[1]


def anchors(text):
    """The anchors of a page's headings, as forges and mdBook make them, and those of its elements."""
    found = set()
    for _, line in prose(text):
        found.update(ELEMENT_ANCHOR.findall(line))
        heading = HEADING.match(line)
        if not heading:
            continue
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
        title = re.sub(r"[`*]", "", title).lower()
        base = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        anchor, count = base, 0
        while anchor in found:
            count += 1
            anchor = f"{base}-{count}"
        found.add(anchor)
    return found


def pages(folder):
    """The Markdown pages below a folder."""
    return sorted(
        path
        for path in folder.rglob("*.md")
        if not SKIPPED_FOLDERS.intersection(path.relative_to(folder).parts)
    )


def check_page(page, folder):
    """The number of relative links of a page, and a message for each broken one."""
    text = page.read_text(encoding="utf-8")
    checked, broken = 0, []
    for number, link in links(text):
        if SCHEME.match(link):
            continue
        checked += 1
        path, _, anchor = link.partition("#")
        target = (page.parent / urllib.parse.unquote(path)).resolve() if path else page.resolve()
        place = f"{page.relative_to(folder)}:{number}"
        if not target.exists():
            broken.append(f"{place}: {link}: no such file")
        elif not target.is_relative_to(folder.resolve()):
            broken.append(f"{place}: {link}: outside the repository")
        elif anchor and target.suffix == ".md":
            if urllib.parse.unquote(anchor) not in anchors(target.read_text(encoding="utf-8")):
                broken.append(f"{place}: {link}: no such heading")
    return checked, broken


def missing_in_summary(folder):
    """A message for each page of the book that its summary does not list."""
    summary = folder / "docs" / "SUMMARY.md"
    if not summary.exists():
        return []
    listed = {link for _, link in links(summary.read_text(encoding="utf-8"))}
    named = {page.relative_to(summary.parent).as_posix() for page in pages(summary.parent)}
    return [f"docs/{name}: not in docs/SUMMARY.md" for name in sorted(named - listed - {"SUMMARY.md"})]


def check(folder):
    """The numbers of pages and relative links below a folder, and a message for each mistake."""
    found, checked, broken = pages(folder), 0, missing_in_summary(folder)
    for page in found:
        count, messages = check_page(page, folder)
        checked += count
        broken += messages
    return len(found), checked, broken


def main(arguments):
    folder = pathlib.Path(arguments[0]) if arguments else ROOT
    page_count, link_count, broken = check(folder)
    for message in broken:
        print(message)
    print(f"{link_count} relative links in {page_count} pages, {len(broken)} broken")
    if not link_count:
        print("no link found: is this the right folder?")
    return 1 if broken or not link_count else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
