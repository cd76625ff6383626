"""The link check finds what is broken, and nothing else."""

import pathlib
import tempfile
import unittest

import check_links


class CheckLinks(unittest.TestCase):
    def check(self, pages):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            for path, text in pages.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(text, encoding="utf-8")
            return check_links.check(folder)

    def assert_broken(self, pages, expected):
        self.assertEqual(self.check(pages)[2], expected)

    def test_a_missing_file_is_found(self):
        self.assert_broken({"a.md": "# A\n\n[b](b.md)\n"}, ["a.md:3: b.md: no such file"])

    def test_a_missing_heading_is_found(self):
        self.assert_broken(
            {"a.md": "[b](b.md#two) [here](#three)\n", "b.md": "# One\n"},
            ["a.md:1: b.md#two: no such heading", "a.md:1: #three: no such heading"],
        )

    def test_a_missing_picture_is_found(self):
        self.assert_broken({"a.md": "![p](p.svg)\n"}, ["a.md:1: p.svg: no such file"])

    def test_a_reference_and_an_element_are_links(self):
        self.assert_broken(
            {"a.md": '[b]: b.md\n<a href="c.md">c</a>\n'},
            ["a.md:2: c.md: no such file", "a.md:1: b.md: no such file"],
        )

    def test_a_link_over_two_lines_is_found(self):
        self.assert_broken({"a.md": "[a\nb](c.md)\n"}, ["a.md:2: c.md: no such file"])

    def test_a_link_out_of_the_repository_is_found(self):
        self.assert_broken({"a.md": "[up](../)\n"}, ["a.md:1: ../: outside the repository"])

    def test_a_page_that_the_summary_leaves_out_is_found(self):
        self.assert_broken(
            {"docs/SUMMARY.md": "[One](one.md)\n", "docs/one.md": "# One\n", "docs/two.md": "# Two\n"},
            ["docs/two.md: not in docs/SUMMARY.md"],
        )

    def test_good_links_pass(self):
        page = "# A `b`, and *c*\n\n## Twice\n\n## Twice\n\n[1](#a-b-and-c) [2](#twice-1) [3](f/) [4](f/b.md#één)\n"
        counted = self.check({"a.md": page, "f/b.md": "# Één\n\n[up](../a.md)\n"})
        self.assertEqual(counted, (2, 5, []))

    def test_code_and_other_hosts_are_not_checked(self):
        page = "```sh\n[a](b.md)\n```\n\n`[a](b.md)` [x](https://example.com/y.md) [m](mailto:a@example.com)\n"
        self.assertEqual(self.check({"a.md": page}), (1, 0, []))

    def test_a_build_folder_is_not_read(self):
        self.assertEqual(self.check({"target/a.md": "[b](b.md)\n"}), (0, 0, []))

    def test_no_link_at_all_is_a_mistake(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(check_links.main([folder]), 1)

    def test_the_repositorys_links_are_good(self):
        page_count, link_count, broken = check_links.check(check_links.ROOT)
        self.assertGreater(page_count, 20)
        self.assertGreater(link_count, 100)
        self.assertEqual(broken, [])


if __name__ == "__main__":
    unittest.main()
