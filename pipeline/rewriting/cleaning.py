"""Remove what models put around a rewritten text: thoughts, announcements, wrappers and closing remarks.

Announcement patterns require a word for rewriting nearby, because "Here is the church that Henry built." is text. Announcements,
labels and closing remarks that the source also contains are kept.
"""

import re
from collections.abc import Callable

from pipeline.text.words import split_words

_MAX_ROUNDS = 4  # wrappers nest: an announcement around a fence around a thought …
_HEAD_CHARACTERS = 400  # longer than any announcement

_THOUGHT = r"think(?:ing)?|thoughts?|reasoning|reflection|analysis|scratchpad"
# Opening tags count only at the beginning of a line, because a text may mention the tag.
_THOUGHT_BLOCK = re.compile(rf"(?ims)^[ \t]*<({_THOUGHT})>.*?</\1>\s*")
_THOUGHT_OPEN = re.compile(rf"(?im)^[ \t]*<(?:{_THOUGHT})>")
_THOUGHT_TAG = re.compile(rf"(?i)<(?:{_THOUGHT})>")
_THOUGHT_CLOSE = re.compile(rf"(?i)</(?:{_THOUGHT})>\s*")
# End-of-turn tokens at either end of the answer. Tokens that begin a turn are left to the rule `prompt_leak`.
_CONTROL = r"(?:<\|(?!im_start|start_header|user|system|assistant)[\w. -]{1,40}\|>|</?s>|<(?:eos|bos|end_of_turn|pad)>)"
_CONTROL_EDGES = re.compile(rf"\A(?:\s*{_CONTROL})+\s*|\s*(?:{_CONTROL}\s*)+\Z", re.IGNORECASE)

# By language: how an announcement begins, and the words for rewriting of which one must follow.
_PREAMBLE_WORDS = {
    "en": (
        r"here(?:'s|’s| is| are| you go| comes)|below (?:is|are)|the following (?:is|are)|this is (?:a|the|my)\b|i(?:'ve|’ve|"
        r" have)|sure|"
        r"certainly|of course|okay|ok|absolutely|alright|got it|no problem|understood|as requested|thank you",
        r"re-?writ|re-?wrote|rephras|paraphras|reword|reformulat|restat|re-?cast|as (?:you )?requested|(?:text|passage) you gave|"
        r"(?:revised|simplified|simpler|clearer|scholarly|encyclop\w+|wikipedia[- ]style|condensed|polished) "
        r"(?:text|passage|version)(?! of (?!(?:the|your|this) (?:\w+ )?(?:text|passage|paragraph|original)))|"
        r"(?:conversation|dialogue|questions?|q&a|question[- ]answer pairs?|list|table|tutorial|summary)\b"
        r"[^\n:]{0,60}\b(?:based on|from|about|of) (?:the|your|this) (?:\w+ )?(?:text|passage)",
    ),
    "fr": (
        r"voici|voilà|ci-dessous|bien sûr|d['’]accord|certainement|avec plaisir|j['’]ai",
        r"reformul|paraphras|r[ée]-?[ée]?cri|remani|version (?:simplifiée|révisée|encyclopédique|plus claire)|texte (?:révisé|"
        r"simplifié)",
    ),
    "de": (
        r"hier (?:ist|sind|kommt|folgt)|nachfolgend|im folgenden|natürlich|gerne?|klar|selbstverständlich|sicher|ich habe|das ist",
        r"um(?:ge)?schr[ie]+b|umformulier|paraphras|neu formulier|überarbeitet|neufassung|vereinfachte (?:fassung|version)|"
        r"(?:sachliche|wissenschaftliche|enzyklopädische) (?:fassung|version)",
    ),
    "es": (
        r"aqu[ií] (?:est[áa]|tienes?|va|le)|claro|por supuesto|a continuación|esta es|este es|desde luego|he ",
        r"re-?escri|par[áa]fras|parafrase|reformul|versión (?:simplificada|revisada|más clara)|texto (?:revisado|simplificado)",
    ),
    "pt": (
        r"aqui (?:está|estão|vai|tem)|claro|com certeza|segue|abaixo|esta é|este é|certamente",
        r"re-?escri|re-?escrev|par[áa]fras|parafrase|reformul|versão (?:simplificada|revista|revisada|mais clara)",
    ),
    "it": (
        r"ecco|certo|certamente|di seguito|naturalmente|va bene|questa è|questo è",
        r"ri-?scri|par[aà]fras|riformul|rielabor|versione (?:semplificata|rivista|più chiara)",
    ),
    "nl": (r"hier (?:is|volgt|zijn)|natuurlijk|zeker|hieronder", r"herschr[ie]+[vj]|parafras|geherformuleerd|herformul"),
    "ru": (
        r"вот|конечно|ниже|хорошо|разумеется|представляю|это|с удовольствием",
        r"перефраз|переписан|переработан|переформулир|пересказ|парафраз|упрощ[её]нн\w+ (?:верси|текст)",
    ),
    "zh": (
        r"以下|下面|好的|当然|當然|这是|這是|没问题|沒問題|改[写寫]后",
        r"改[写寫]|重[写寫]|改述|[释釋][义義]|[复複]述|[转轉]述|[润潤]色|重新(?:表述|表达|表達|撰写|撰寫)",
    ),
    "ja": (
        r"以下|こちら|はい|承知|かしこまりました|もちろん|了解",
        r"書き(?:直|換え|かえ|改め)|言い(?:換え|かえ)|リライト|パラフレーズ|要約し直",
    ),
    "ko": (r"다음은|아래는|물론|네[,.! ]|여기", r"다시 (?:쓴|작성)|바꿔 쓴|재작성|패러프레이즈"),
    "ar": (r"إليك|فيما يلي|بالتأكيد|هذا هو|بالطبع", r"إعادة (?:صياغة|كتابة)|صياغة|المعاد"),
}
# Announcements with text after them on the same line. English needs a whole phrase, because its words for rewriting are common in
# text; those of the other languages are rarer.
_TEXT = r"(?:text|passage|paragraph|article|sentence|excerpt|version|original|content|document)"
_INLINE_PREAMBLES = {
    language: rf"(?:{begin})(?=[^\n:：]{{0,120}}(?:{stem}))[^\n:：]{{0,120}}" for language, (begin, stem) in _PREAMBLE_WORDS.items()
} | {
    "en": r"(?:(?:sure|certainly|of course|okay|ok|absolutely|alright)[!,.]? )?(?:here(?:'s|’s| is)|below is|this is) "
    r"(?:(?:a|an|the|your|my|one|possible|\w+er|\w+ly) ){0,3}(?:paraphrase|rewrite|rewriting|rephrasing|rewritten|paraphrased|"
    r"rephrased|reworded)"
    rf"(?: {_TEXT}){{0,2}}(?: (?:of|for) (?:the |your |this )?(?:\w+ )?{_TEXT})?(?: (?:in|with|as) [^\n:]{{0,50}})?"
}
_COLON = r"\s*[:：]\s*(?:\*\*|__)?[ \t]*"
_PREAMBLE = re.compile(
    "|".join(
        # Ended by a colon or full stop at the end of the line, or by a colon within the line.
        rf"\A[*_#>¡ ]*(?:(?:{begin})(?=[^\n]{{0,200}}?(?:{stem}))(?:[^\n:：]{{0,200}}{_COLON}\s*\n|"
        rf"[^\n:：]{{0,200}}[.。!！][ \t*_]*\n)|"
        rf"{_INLINE_PREAMBLES[language]}{_COLON})\s*"
        for language, (begin, stem) in _PREAMBLE_WORDS.items()
    ),
    re.IGNORECASE,
)
# Any first line that ends with a colon before a blank line. It is removed if it mentions rewriting and the source does not.
_FIRST_LINE = re.compile(r"\A[^\n:：]{1,160}[:：][ \t*_]*\n\s*\n\s*")
_REWRITING = re.compile("|".join(stem for _, stem in _PREAMBLE_WORDS.values()), re.IGNORECASE)
# An acknowledgement alone on the first line.
_ACKNOWLEDGEMENT = re.compile(
    r"\A[*_¡ ]*(?:(?:sure|okay|ok|certainly|of course|alright)[,!.] here (?:you go|it is)|here (?:you go|it is)|sure(?: thing)?|"
    r"certainly|of course|okay|ok|absolutely|alright|got it|understood|no problem|bien sûr|d['’]accord|"
    r"natürlich|gerne?|klar|selbstverständlich|claro(?: que sí)?|por supuesto|com certeza|certo|certamente|ecco|natuurlijk|"
    r"конечно|хорошо|"
    r"好的|当然可以|当然|當然|没问题|はい|承知しました|承知いたしました|かしこまりました|もちろんです|네|"
    r"물론입니다)[ ]?[!.,。！，:]?[*_ ]*\n+",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"\A[*_#>\[ ]*(?:(?:the )?(?:rewritten|rephrased|paraphrased|reworded|revised|simplified|scholarly|new|final)"
    r"(?: (?:text|version|passage|paragraph|article|answer|output|content))(?: of (?:the|your|this) (?:\w+ )?(?:text|passage|"
    r"paragraph|article))?|paraphrase|rewrite|rephrasing|rewritten|output|"
    r"(?:texte|version) (?:reformulée?|réécrite?|remaniée?)|reformulation|paraphrase|réécriture|"
    r"(?:umgeschriebene[rs]?|umformulierte[rs]?|überarbeitete[rs]?|neue[rs]?) (?:text|fassung|version)|umformulierung|neufassung|"
    r"(?:texto|versión|versão) (?:reescrit[oa]|reformulad[oa]|parafrasead[oa])|paráfrasis|paráfrase|"
    r"(?:testo|versione) (?:riscritt[oa]|riformulat[oa])|parafrasi|(?:переписанный|перефразированный|переработанный) текст|"
    r"(?:改写|改寫|重写|重寫|润色)(?:后的|後的)?(?:文本|文章|内容|內容|版本|段落|结果|如下)?|(?:書き直し|書き換え|"
    r"言い換え)(?:た|後の)?(?:文章|文|テキスト)?)"
    r"(?:[*_\] ]*[:：][*_\] ]*|(?<=\w)[*_\]]{1,3}[ ]*(?=\n)|(?<=\w)[ ]*(?=\n\s*\n))\s*",
    re.IGNORECASE,
)
_HEADING_SIGNS = re.compile(r"\A\s*(?:[*_#\[]|[^\n]*[:：])")

_FENCE = re.compile(r"\A```[ \t]*(?:text|txt|markdown|md|plaintext|plain|)[ \t]*\n(.*?)\n?```\s*\Z", re.DOTALL | re.IGNORECASE)
_TAGS = re.compile(
    r"\A<(text|answer|output|rewrite|rewritten|rewritten_text|paraphrase|passage|response)>\s*(.*?)\s*</\1>\s*\Z",
    re.DOTALL | re.IGNORECASE,
)
_QUOTES = tuple((pair[0], pair[1]) for pair in ('""', "“”", "„“", "„”", "«»", "»«", "「」", "『』", "””", "＂＂"))
_RULE_LINE = r"(?:[-*_=]{3,}|\* \* \*)"
_FIRST_RULE = re.compile(rf"\A\s*{_RULE_LINE}[ \t]*\n\s*")
_LAST_RULE = re.compile(rf"\n\s*{_RULE_LINE}\s*\Z")

_CLOSING = (
    r"please note that (?:some|i|this|the (?:text|above|original|re))\b|以上(?:の内容)?でよろしい|i hope (?:this|that|"
    r"it) (?:helps?|meets|works|is helpful|rewrite|version)|hope this helps|"
    r"(?:please )?(?:let me know|feel free to (?:ask|reach|let)|don['’]t hesitate to)[^\n]{0,80}?"
    r"\b(?:if|adjust|chang|further|questions?|version|text|rewrit|rephras|help|else|need)|"
    r"would you like me to|is there anything else|do you want me to|if you(?:['’]d| would) like[^\n.]{0,60}(?:i can|let me|"
    r"version|adjust)|"
    r"if you need (?:any )?(?:further|more|another|additional)|"
    r"j['’]espère que (?:cela|ça|cette)[^\n]{0,60}(?:aide|convien|utile|répond)|n['’]hésite[zs]? pas à|(?:dites|dis)-moi si|"
    r"souhaitez-vous que je|"
    r"ich hoffe,? (?:das|dies|es|diese)[^\n]{0,60}(?:hilft|hilfreich|entspricht|weiter)|lassen sie (?:es )?mich wissen|"
    r"lass (?:es )?mich wissen|(?:wenn|falls) (?:sie|du) (?:weitere|noch|möchten|möchtest)[^\n]{0,80}|"
    r"sag(?:en sie)? (?:mir )?bescheid|"
    r"espero que (?:esto|isso|te|le|ajude|sea|seja)|(?:házmelo|hágamelo|déjame|avísame|avíseme|hazme)[^\n]{0,20}(?:saber|si)|"
    r"no dudes en|se precisar de|avise-me se|spero (?:che )?(?:questo|ti|sia|possa)|fammi sapere|"
    r"надеюсь,? (?:это|что)|если (?:вам )?(?:нужн|хотите|потребу|понадоб|у вас)[^\n]{0,80}(?:дайте|сообщ|обра|помо|скаж|напиш)|"
    r"дайте знать|"
    r"希望(?:这|這|以上|对|對)[^\n]{0,20}(?:帮助|幫助|满足|符合|有用)|如(?:果|有)[^\n]{0,30}(?:请|請|告诉|告訴|随时|隨時|告知)|"
    r"(?:ご参考|お役に立て)|(?:他に|何か|さらに)[^\n]{0,40}(?:お知らせ|お申し付け|おっしゃ)"
)
_CLOSING_NOTE = (
    r"[\[(（【*_ ]*(?:\*\*)?(?:please )?(?:note|n\.?b\.?|remarque|note[zr]?|hinweis|anmerkung|nota|observação|примечание|注意?|"
    r"说明|"
    r"說明|"
    r"備考|注釈)"
    r"(?:\*\*)?\s?[:：](?:\*\*)?[^\n]{0,120}?(?:"
    r"i (?:have|['’]ve|kept|tried|removed|did|changed|rewrote|preserved)|i['’]ve|this (?:re|version|para|text)|the (?:re|above|"
    r"original|para)|"
    r"j['’]ai|ce texte|cette (?:version|ré|re)|le texte|ich habe|(?:die|der|dieser?|das) (?:text|fassung|version|original|um)|"
    r"he (?:mantenido|"
    r"conservado|eliminado|re)|(?:este|el|o) texto|esta versi|mantive|ho (?:mantenuto|con|ri)|я (?:сохран|убрал|пере|постар)|текст|"
    r"(?:我|本文|以上|此|该|該|原文|改[写寫])|(?:原文|上記|文章))"
)
_CLOSING_NOTE_ENGLISH = (
    r"\(?(?:this|the) (?:rewritten|rephrased|revised|paraphrased|reworded|simplified) (?:version|text|passage|paragraph)\b"
    r"[^\n]{0,40}\b(?:keep|maintain|preserve|retain|aim|use|capture|convey|follow|avoid|simplif|stay)"
)
_CLOSING_LINE = re.compile(
    rf"(?:\A|\n)[ \t*_>-]*(?:{_CLOSING}|{_CLOSING_NOTE}|{_CLOSING_NOTE_ENGLISH})[^\n]*(?:\n[^\n]+){{0,3}}\s*\Z", re.IGNORECASE
)
# On the same line as the last sentence: only phrases that no ordinary text ends with.
_CLOSING_SENTENCE = re.compile(
    r"(?<=[.!?。！？\"”])\s*(?:i hope (?:this|that) helps|let me know if you(?:['’]d like| would like| need| want)[^\n.!?]{0,80}|"
    r"j['’]espère que cela vous aide|ich hoffe,? das hilft|espero que esto (?:te |le )?(?:ayude|sirva)|espero que isso ajude|"
    r"希望(?:这|這|以上)[^\n。]{0,12}(?:帮助|幫助)(?:您|你)?|надеюсь,? это помо\w+)[!.。！]?\s*\Z",
    re.IGNORECASE,
)


def clean_answer(answer: str, source: str = "") -> tuple[str, tuple[str, ...]]:
    """Return the answer without what the model put around it, and the names of the cleanings that changed it, in this order.

    - `think`: thoughts in tags, and end-of-turn tokens. An unclosed thought is kept.
    - `preamble`: an announcement ("Here is a paraphrase:") or a label.
    - `wrapper`: a code fence, quotation marks or tags around the whole answer.
    - `trailer`: wishes, offers and notes at the end.

    Announcements, labels and closing remarks are recognised in a dozen languages. White space at either end is removed too, and
    does not count as a cleaning.
    """
    text, applied = answer.strip(), set()
    for _ in range(_MAX_ROUNDS):
        before = text
        for name, cleaning in _CLEANINGS.items():
            cleaned = cleaning(text, source).strip()
            if cleaned != text:
                applied.add(name)
                text = cleaned
        if text == before:
            break
    return text, tuple(name for name in _CLEANINGS if name in applied)


def has_unfinished_thought(text: str) -> bool:
    """Return whether a cleaned answer begins with an unclosed thought, or has no text after the end of a thought."""
    close = _THOUGHT_CLOSE.search(text)
    if close:
        return not text[close.end() :].strip()
    return bool(_THOUGHT_OPEN.match(text))


def _source_contains(source: str, passage: str) -> bool:
    """Return whether the source contains the first five words of `passage`, which is then part of the text and is kept."""
    first = " ".join(split_words(passage)[:5])
    return bool(first) and f" {first} " in f" {' '.join(split_words(source))} "


def _remove_thoughts(text: str, source: str) -> str:
    del source
    text = _CONTROL_EDGES.sub("", _THOUGHT_BLOCK.sub("", text))
    # Some chat templates open the thought in the prompt: without an opening tag, everything up to the closing tag is thought.
    close = None if _THOUGHT_TAG.search(text) else _THOUGHT_CLOSE.search(text)
    rest = text[close.end() :] if close else ""
    return rest if rest.strip() else text


def _remove_preamble(text: str, source: str) -> str:
    head = text[:_HEAD_CHARACTERS]
    for pattern in (_ACKNOWLEDGEMENT, _PREAMBLE, _LABEL):
        match = pattern.match(head)
        if match and not _source_contains(source, match[0]) and (pattern is not _LABEL or _HEADING_SIGNS.match(match[0])):
            return _FIRST_RULE.sub("", text[match.end() :])
    match = _FIRST_LINE.match(head)
    if match and _REWRITING.search(match[0]) and not _REWRITING.search(source):
        return _FIRST_RULE.sub("", text[match.end() :])
    return text


def _remove_wrapper(text: str, source: str) -> str:
    del source
    for pattern, group in ((_FENCE, 1), (_TAGS, 2)):
        match = pattern.match(text)
        if match and "```" not in match[group]:
            return str(match[group])
    for opening, closing in _QUOTES:
        inner = text[1:-1]
        if len(text) > 2 and text[0] == opening and text[-1] == closing and opening not in inner and closing not in inner:
            return inner
    return text


def _remove_trailer(text: str, source: str) -> str:
    for pattern in (_CLOSING_LINE, _CLOSING_SENTENCE):
        match = pattern.search(text, max(0, len(text) - 3 * _HEAD_CHARACTERS))
        if match and not _source_contains(source, match[0]):
            return _LAST_RULE.sub("", text[: match.start()].rstrip())
    return text


_CLEANINGS: dict[str, Callable[[str, str], str]] = {
    "think": _remove_thoughts,
    "preamble": _remove_preamble,
    "wrapper": _remove_wrapper,
    "trailer": _remove_trailer,
}
