"""Texts that tokenizers trip over."""

TEXTS = [
    "hello world",
    "Hello, World! It's 2024-01-15, 3.14159 and 1000000.",
    "  leading and   inner    spaces  ",
    "\n\n\t\tdef f(x):\n    return x**2  # comment\n\n\n",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 emoji ✨" + "🤷🏽‍♀️" * 3,
    "中文字符测试，你好世界。日本語テスト、カタカナ 한국어 텍스트",
    "Привет мир! Ёлка العربية نص ไทย हिन्दी",
    "e\u0301 vs é, ﬁ ligature, 𝔘𝔫𝔦 𝟘𝟙𝟚, ǅ ß ẞ İ ı",
    "I'll we've they'RE don'T IT'S 'tis 's't're a'b''c'''",
    "\r\n\r\n mixed \r newlines \n\r \u00a0nbsp\u3000wide\u2003em",
    "a" * 300 + " " * 100 + "\n" * 50,
    "1234567890" * 5 + " 1 12 123 1234 ½ ² Ⅷ ٣٤٥",
    "<|im_start|>user\nhi<|im_end|></s><unk> <tool>{}</tool> [PAD0] <|im_start",
    "\x00\x01\x02\x7f \ufeff\u200b\u200d control",
    "x=1;y<=2&&z>=3||w!=4 //==> http://example.com/a?b=c&d=%20#frag $$\\frac{a}{b}$$",
]
