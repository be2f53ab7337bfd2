"""Text as a careless crawler would have stored it: wrong character sets, debris of markup.

Every corruption is a pure function of (text, kind, key), so a document is corrupted in the same
way on every run; the key is its id.
"""

import hashlib
import random
import re

from lmnoise.errors import UserError

KINDS = ("wrong_codec", "markup")
CODECS = ("latin-1", "cp1252", "utf-16-le", "koi8-r", "cp437", "mac-roman", "cp1251", "gb18030")
# Pieces of debris for each word of text: one in about 12 words.
MARKUP_DENSITY = 0.08


def is_text_corruption(kind: str) -> bool:
    """Whether `kind` is `wrong_codec`, `wrong_codec:CODEC` or `markup`."""
    name, colon, codec = kind.partition(":")
    return kind in KINDS or (name == "wrong_codec" and colon == ":" and codec in CODECS)


def corrupt_text(text: str, kind: str, seed_bytes: bytes) -> str:
    """The corrupted text, the same for the same arguments.

    `wrong_codec`: the UTF-8 bytes read as another encoding, one of `CODECS` chosen for the whole
    document by the key, or the one named as in `wrong_codec:latin-1`; bytes that it leaves
    undefined become U+FFFD (an odd last byte of UTF-16 is dropped). ASCII text only changes under
    utf-16-le. `markup`: tags, entities, navigation bars, cookie notices and template braces
    between the words and lines, `MARKUP_DENSITY` pieces a word; without them the words are those
    of the clean text, in order.
    Raises UserError for an unknown kind.
    """
    if not is_text_corruption(kind):
        raise UserError(
            f"unknown text corruption {kind!r}: choose {', '.join(KINDS)} or wrong_codec:CODEC "
            f"with one of {', '.join(CODECS)}"
        )
    key = hashlib.blake2b(seed_bytes, digest_size=16, person=b"text").digest()
    generator = random.Random(int.from_bytes(key, "little"))
    name, _, codec = kind.partition(":")
    if name == "markup":
        return _markup(text, generator)
    return _wrong_codec(text, codec or generator.choice(CODECS))


def _wrong_codec(text: str, codec: str) -> str:
    raw = text.encode()
    if codec == "utf-16-le":
        raw = raw[: len(raw) // 2 * 2]
    return raw.decode(codec, errors="replace")


_INLINE = (
    "<br>", "<br />", "</p><p>", "<p>", "</p>", "<b>", "</b>", "<i>", "</i>", "<span>", "</span>",
    "</div>", "<em>", "</em>", "&nbsp;", "&nbsp;&nbsp;", "&amp;", "&quot;", "&lt;", "&gt;",
    "&#39;", "&#8217;", "&mdash;", "&hellip;", "[edit]", "[citation needed]", "[1]", "[2]", "''",
    "'''", "[[", "]]", "{{", "}}", "{{cite web|url=", "|accessdate=", "</ref>", "<ref>", "<!--",
    "-->", "{{ page.title }}", "{% endif %}", "<?php echo $title; ?>", "${content}",
)  # fmt: skip
_TEMPLATES = (
    '<div class="{word}-{number}">', '<span style="font-size:{number}px">',
    '<a href="/{word}/{number}.html">', '<img src="/img/{word}{number}.gif" alt="">',
    "[[Category:{word}]]", "{{{{{word}|{number}}}}}", '<td width="{number}">',
    "[[File:{word}{number}.jpg|thumb|{number}px]]",
)  # fmt: skip
_LINES = (
    "Home | About | Contact | Login | Register",
    "Home > {word} > {word} > Page {number}",
    "<< Previous | Next >>",
    "Skip to main content",
    "We use cookies to give you the best experience on our site. Accept | Decline | Settings",
    "This website uses cookies. By continuing you agree to our Privacy Policy.",
    "Share on Facebook Tweet Pin it Email Print",
    "Subscribe to our newsletter! Enter your email address",
    "Copyright (c) {number} All rights reserved. Terms of Use | Privacy Policy | Sitemap",
    "Posted by admin on {number}/{number} | {number} comments | Leave a reply",
    "Advertisement",
    "Read more...",
    "<script>var _gaq = _gaq || [];</script>",
    "{{{{Navbox|name={word}|state=collapsed}}}}",
    "JavaScript is disabled. Please enable JavaScript in your browser.",
)
_WORDS = ("main", "content", "nav", "news", "item", "box", "archive", "header", "wiki", "left")
_LINE_SHARE = 0.1  # of the pieces that stand on a line of their own


def _markup(text: str, generator: random.Random) -> str:
    parts = re.split(r"(\s+)", text)
    corrupted = []
    for part in parts:
        corrupted.append(part)
        if part and not part.isspace() and generator.random() < MARKUP_DENSITY:
            corrupted.append(_piece(generator))
    return "".join(corrupted)


def _piece(generator: random.Random) -> str:
    def fill(template: str) -> str:
        return template.format(word=generator.choice(_WORDS), number=generator.randrange(1, 2025))

    if generator.random() < _LINE_SHARE:
        return f"\n{fill(generator.choice(_LINES))}\n"
    if generator.random() < 0.3:
        return f" {fill(generator.choice(_TEMPLATES))}"
    return f" {generator.choice(_INLINE)}"
