"""The book's preprocessor rewrites links out of the book, and no others."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "docs"))
import outside_links  # noqa: E402


class OutsideLinks(unittest.TestCase):
    def assert_rewritten(self, page, expected):
        self.assertEqual(outside_links.rewrite(page, "running.md", "https://forge.example/p"), expected)

    def test_a_link_out_of_the_book_leads_to_the_repository(self):
        self.assert_rewritten("[r](../README.md#run-it)", "[r](https://forge.example/p/blob/main/README.md#run-it)")

    def test_a_link_within_the_book_stays(self):
        for page in ("[s](speed.md)", "[s](../docs/speed.md)", "[h](#limits)", "[x](https://example.com/)"):
            self.assert_rewritten(page, page)

    def test_code_stays(self):
        self.assert_rewritten("```sh\n[r](../README.md)\n```", "```sh\n[r](../README.md)\n```")

    def test_each_chapter_is_rewritten_and_its_children_too(self):
        child = {"Chapter": {"content": "[r](../a.md)", "path": "b.md", "sub_items": []}}
        book = [{"PartTitle": "Use it"}, "Separator", {"Chapter": {"content": "[r](../a.md)", "path": "a.md", "sub_items": [child]}}]
        outside_links.walk(book, "https://forge.example/p")
        for chapter in (book[2], child):
            self.assertEqual(chapter["Chapter"]["content"], "[r](https://forge.example/p/blob/main/a.md)")


if __name__ == "__main__":
    unittest.main()
