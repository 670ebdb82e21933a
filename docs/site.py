"""Makes one site of the pages of docs/, the README and its neighbours: mkdocs calls this, as mkdocs.yml says.

Pages link to files by their path in the repository, so that the links work on GitHub. A link to a file that is no page
of the site leads to GitHub.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
NEIGHBOURS = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages at the root of the repository, and where they are on the site."""
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the root of the repository."""
    for name, place in NEIGHBOURS.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead each link to the page of the site, or else to GitHub.

    Raises:
        FileNotFoundError: a link leads to a file that is not in the repository.
    """
    place = page.file.src_uri
    source = next((name for name, other in NEIGHBOURS.items() if other == place), f"docs/{place}")

    def led(found: re.Match[str]) -> str:
        target = normpath(str(PurePosixPath(source).parent / found[1]))
        if not (ROOT / target).exists():
            raise FileNotFoundError(f"{source} links to {target}, which is not in the repository")
        on_site = NEIGHBOURS.get(target, target.removeprefix("docs/"))
        if files.get_file_from_path(on_site) is not None:
            return relpath(on_site, PurePosixPath(place).parent)
        return f"{config.repo_url.rstrip('/')}/blob/main/{target}"

    return LINK.sub(led, markdown)
