"""What mkdocs.yml adds to MkDocs: pages that lie beside the code they describe, and formulas without JavaScript.

A README of a service is a page of the site as well, and links lead from page to page wherever the file lies. A link to
code has no page to lead to: the path stands there. Formulas become MathML, which browsers draw with fonts of their own.
"""

import posixpath
import re
from collections.abc import Callable
from html import unescape
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.livereload import LiveReloadServer
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
# Pages by their files in the repository; those of docs/ are where they are.
ELSEWHERE = {
    "README.md": "index.md",
    "docs/README.md": "index.md",
    "CHANGELOG.md": "reference/changelog.md",
    "CONTRIBUTING.md": "how-to/contribute.md",
    "SECURITY.md": "explanation/security.md",
    "deploy/README.md": "how-to/deploy.md",
    "deploy/RUNBOOK.md": "how-to/alerts.md",
    "deploy/k8s/README.md": "how-to/deploy-on-kubernetes.md",
    "deploy/recipes/arithmetic/README.md": "how-to/arithmetic.md",
    "deploy/recipes/countdown_long/README.md": "how-to/countdown-long.md",
    "services/environments/README.md": "explanation/environments.md",
    "services/generation/README.md": "explanation/generation.md",
    "services/learner/README.md": "explanation/learner.md",
    "services/planner/README.md": "explanation/planner.md",
    "services/reward/README.md": "explanation/reward.md",
    "shared/streams/README.md": "explanation/delivery.md",
}
_FILES = {page: file for file, page in ELSEWHERE.items() if file != "docs/README.md"}
_FENCE = re.compile(r"^( *)(`{3,}|~{3,})[^\n]*\n.*?^\1\2 *$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:[^\]\[]|\[[^\]]*\])*)\]\((?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?\)")
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not in docs/."""
    for page, file in _FILES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / file)))
    return files


def on_serve(server: LiveReloadServer, config: MkDocsConfig, builder: Callable[[], None]) -> LiveReloadServer:
    """Builds again where one of these pages changes, too."""
    for file in _FILES.values():
        server.watch(str(ROOT / file))
    return server


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages."""
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    source = page.file.src_uri
    return outside_fences(markdown, lambda text: links(text, _FILES.get(source, f"docs/{source}"), source))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns formulas into MathML."""
    return _FORMULA.sub(lambda match: formula(match[2], is_block=match[1] == "div"), html)


def formula(latex: str, *, is_block: bool) -> str:
    """A formula as HTML that needs no script."""
    drawn = convert(unescape(latex).strip(), display="block" if is_block else "inline")
    return f'<div class="formula">{drawn}</div>' if is_block else drawn


def links(text: str, file: str, page: str) -> str:
    """The text of a file of the repository, with its links as the page has them.

    Args:
        file, page: its path in the repository, and the place of its page in the site.
    """

    def replaced(match: re.Match[str]) -> str:
        picture, title, target, anchor = match[1], match[2], match[3], match[4] or ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), target))
        if path.startswith("docs/") and path not in ELSEWHERE and (ROOT / path).is_file():
            place = path.removeprefix("docs/")
        elif path in ELSEWHERE:
            place = ELSEWHERE[path]
        elif (ROOT / path).exists() and not picture:
            return described(title, path)
        else:
            return match[0]  # MkDocs says that it leads nowhere
        return f"{picture}[{title}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"

    return _LINK.sub(replaced, text)


def described(title: str, path: str) -> str:
    """What stands where the repository links to code: the path, after its title where that says more."""
    bare = title.strip("`")
    return f"`{path}`" if path.endswith(bare.strip("/")) else f"{title} (`{path}`)"


def outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    """The page with everything changed but its fenced blocks."""
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [change(markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, change(markdown[end:])])
