"""Detect answers that refuse the task, in a dozen languages."""

import re

from pipeline.text.ngrams import get_wording

_MAX_WORDS = 150  # a longer answer contains the rewrite, and an apology in it is text
_UNSPACED_FACTOR = 2  # characters per word in scripts without spaces
_HEAD_CHARACTERS = 240  # a refusal begins within these

_APOLOGY = (
    r"(?:i['’]?m|i am|we['’]re) (?:(?:very|really|so|truly|deeply) )?sorry|sorry|i apologi[sz]e|my apologies|"
    r"unfortunately|regrettably"
)
_UNABLE = (
    r"(?:i|we)(?:['’]m| am|['’]re| are) (?:not able|unable|not allowed|not permitted|not comfortable|not programmed|"
    r"not in a position)|"
    r"(?:i|we) (?:can['’]?t|cannot|can not|won['’]t|will not|must decline|have to decline|am going to decline|do not|don['’]t)|"
    r"i(?:['’]d| would) (?:prefer|rather) not|i must (?:respectfully )?decline"
)
_TASK = (
    r"assist|help (?:you )?(?:with|out)|help\b|fulfil|comply|re-?write|rephrase|paraphrase|provide|process|generate|create|"
    r"continue with|"
    r"complete (?:this|that|the|your)|produce|do (?:that|this)|engage|access|translate|summari[sz]e|offer|support|reproduce|"
    r"transform|convert|"
    r"discuss|write (?:about|this|that|content)|have (?:access|the ability|enough)"
)
_PATTERNS = (
    # English. An apology alone may be fiction; together with a task of a model it is a refusal.
    rf"(?:(?:{_APOLOGY})[^.\n]{{0,40}}?\b)?(?:{_UNABLE})\b[^.\n]{{0,40}}?\b(?:{_TASK})\w*",
    r"(?:(?:i['’]m sorry|sorry|unfortunately)[^.\n]{0,20})?as an? (?:\w+ )?(?:ai|artificial intelligence|large language model|"
    r"language model)\b",
    rf"(?:{_APOLOGY})[^.\n]{{0,20}}?\b(?:this|that|your|the) (?:request|task|prompt|content)\b[^.\n]{{0,60}}?"
    r"\b(?:outside|beyond|against|not (?:something|possible|allowed)|can(?:not|['’]t)|unable|able)",
    r"i(?:['’]m| am) (?:just |only )?an? (?:ai|language model|artificial)",
    r"(?:please provide|could you (?:please )?(?:provide|share)|can you (?:please )?(?:provide|share))[^.\n]{0,40}\b(?:text|"
    r"passage|content|more)",
    r"(?:it (?:seems|looks|appears)|there (?:is|seems|appears))[^.\n]{0,60}\b(?:no (?:text|passage|content)|"
    r"(?:text|passage|message)[^.\n]{0,30}(?:missing|empty|incomplete|cut off|not provided)|(?:haven['’]t|didn['’]t|"
    r"not) (?:provided?|includ|shar))",
    r"(?:the|this|your) (?:text|passage|request|content)[^.\n]{0,60}(?:violates|goes against|inappropriate|against (?:my|the|"
    r"our) (?:guidelines|polic))",
    # French
    r"(?:je suis (?:vraiment |sincèrement )?désolée?|désolée?|je m['’]excuse|malheureusement)[^.\n]{0,60}"
    r"(?:ne (?:peux|puis)|pas en mesure|suis pas|impossible)[^.\n]{0,60}(?:aider|répondre|reformul|réécri|paraphras|fournir|"
    r"traiter|demande|accéder|ce texte)",
    r"je ne (?:peux|puis) pas[^.\n]{0,40}(?:répondre à|reformul|réécri|paraphras|fournir|traiter|cette demande|ce texte|"
    r"vous aider)",
    r"en tant qu['’](?:ia|intelligence artificielle|assistant|modèle)|je suis (?:une ia|un modèle de langage|un assistant)",
    r"(?:je regrette|désolée?|malheureusement)[^.\n]{0,30}impossible (?:de|d['’])\s?(?:donner suite|répondre|traiter|satisfaire|"
    r"accéder|vous aider)",
    # German
    r"ich (?:kann|darf|möchte)\b[^.\n]{0,40}(?:anfrage|bitte|aufgabe|anliegen|text)[^.\n]{0,30}(?:nicht|keine?n?)\b[^.\n]{0,40}"
    r"(?:helfen|nachkommen|erfüllen|bearbeiten|umschreiben|umformulieren|entsprechen|unterstützen)",
    r"(?:es tut mir (?:sehr )?leid|tut mir leid|leider|entschuldigung|bedaure)[^.\n]{0,60}(?:kann|darf|nicht in der lage|"
    r"unmöglich)[^.\n]{0,80}"
    r"(?:nicht|kein)[^.\n]{0,80}(?:helfen|umschreiben|umformulieren|bearbeiten|wiedergeben|bereitstellen|erfüllen|anfrage|"
    r"nachkommen|erstellen|weiterhelfen)",
    r"(?:als (?:ki|künstliche intelligenz|sprachmodell|ai)\b|als (?:ein )?ki-\w+)|ich bin (?:nur )?(?:ein sprachmodell|eine ki)",
    # Spanish
    r"(?:lo siento(?: mucho)?|lamento|lo lamento|perdón|disculp\w+|desafortunadamente|lamentablemente)[^.\n]{0,40}"
    r"(?:no (?:puedo|podemos|me es posible)|incapaz)[^.\n]{0,60}(?:ayudar|reescrib|parafrase|reformul|proporcion|cumplir|proces|"
    r"realizar|solicitud|complet|gener)",
    r"no (?:puedo|me es posible) (?:ayudar\w* con|reescribir|parafrasear|reformular|cumplir|procesar|completar|"
    r"generar) (?:est[ea]|es[ea]|la|tu|su|el)\b",
    r"como (?:un |una )?(?:modelo de lenguaje|ia\b|inteligencia artificial|asistente)",
    # Portuguese
    r"(?:desculp\w+|sinto muito|lamento|infelizmente|peço desculpas?)[^.\n]{0,40}(?:não (?:posso|consigo|podemos|sou capaz|"
    r"é possível))[^.\n]{0,60}"
    r"(?:ajudar|reescrev|parafrase|reformul|fornec|atender|process|realizar|solicita|pedido|ger[ae])",
    r"não (?:posso|consigo) (?:ajudar com|reescrever|parafrasear|reformular|atender|processar) (?:est[ea]|ess[ea]|o|a|seu|sua)\b",
    r"como (?:um |uma )?(?:modelo de linguagem|assistente de ia)",
    # Italian
    r"(?:mi dispiace|spiacente|purtroppo|mi scuso|scusa\w*)[^.\n]{0,40}(?:non (?:posso|sono in grado|mi è possibile|"
    r"riesco))[^.\n]{0,60}"
    r"(?:aiutar|riscriv|parafras|riformul|fornir|soddisfar|elabor|richiesta|complet|gener)",
    r"non (?:posso|riesco a) (?:aiutar\w* con|riscrivere|parafrasare|riformulare|soddisfare|elaborare) (?:quest[oa]|la|il|tua|"
    r"sua)\b",
    r"(?:in quanto|come) (?:modello linguistico|modello di linguaggio|ia\b|intelligenza artificiale)",
    # Dutch
    r"(?:het spijt me|sorry|helaas)[^.\n]{0,40}(?:kan|mag)[^.\n]{0,30}niet[^.\n]{0,60}(?:helpen|herschrijven|verzoek|voldoen|"
    r"verwerken)|als (?:ai|taalmodel)\b",
    # Russian
    r"(?:извините|простите|к сожалению|прошу прощения|мне (?:очень )?жаль)[^.\n]{0,40}(?:не (?:могу|можем|в состоянии|"
    r"имею возможности)|невозможно)"
    r"[^.\n]{0,60}(?:помочь|перепис|перефраз|выполн|предостав|обработ|ответить|запрос|продолж|созда)",
    r"(?:как|являясь) (?:языков\w+ модел\w+|искусственн\w+ интеллект\w*|ии\b)|я (?:всего лишь |лишь )?(?:языковая модель|"
    r"искусственный интеллект)",
    # Chinese
    r"(?:(?:非常|很|十分)?抱歉|对不起|對不起|很遗憾|很遺憾|不好意思)[^。\n]{0,30}(?:我|本助手|作为)?[^。\n]{0,12}(?:无法|無法|"
    r"不能|不可以|没有办法|没办法)"
    r"[^。\n]{0,30}(?:提供|协助|協助|帮|幫|改写|改寫|重写|重寫|处理|處理|完成|满足|滿足|回答|生成|执行|讨论|该|此|这)",
    r"(?:作为|作為|身为)(?:一个|一個|一名)?(?:人工智能|AI|ai|语言模型|語言模型|大型?语言模型)",
    r"我(?:无法|無法|不能)(?:改写|改寫|重写|重寫|处理|處理|满足|提供|协助|协助您|完成|回答)(?:您|你|这|這|该|該|此|任何|相关|"
    r"有关|您的|的)",
    # Japanese
    r"(?:申し訳(?:ありません|ございません|ない)|すみません|恐れ入りますが|残念ながら)[^。\n]{0,60}(?:できません|できかねます|"
    r"いたしかねます|お答え|応じ|お手伝い|対応)",
    r"(?:私は)?(?:AI|ai|人工知能|言語モデル)(?:アシスタント|モデル)?(?:として|なので|です|であり)",
    # Korean
    r"(?:죄송합니다|죄송하지만|유감스럽지만|미안합니다)[^.\n]{0,60}(?:수 없|어렵|도와|제공)|저는 (?:ai|인공지능|언어 모델)",
    # Arabic
    r"(?:آسف|أعتذر|عذر[اًا]+|للأسف)[^.\n]{0,50}(?:لا (?:أستطيع|يمكنني)|لن أتمكن)",
)
# A greeting may come first: "Hello! I'm sorry, but …".
_GREETING = r"(?:(?:hi|hello|hmm|well|thank you[^.!\n]{0,60}|bonjour|hallo|hola|您好|你好|здравствуйте)[!,.。！，…]*\s*)?"
_REFUSAL = re.compile(rf"(?:{'|'.join(_PATTERNS)})", re.IGNORECASE)
_LEADING_REFUSAL = re.compile(rf"\A[\s*_>#]*{_GREETING}(?:{'|'.join(_PATTERNS)})", re.IGNORECASE)


def find_refusal(text: str, num_words: int, source: str) -> str:
    """Describe the refusal with which an answer begins; return "" if there is none.

    Answers of more than 150 words (300 in a script without spaces) do not count, nor do answers to sources that contain a refusal
    themselves.
    """
    refusal = _LEADING_REFUSAL.match(text[:_HEAD_CHARACTERS])
    if not refusal:
        return ""
    max_words = _MAX_WORDS * (_UNSPACED_FACTOR if get_wording(text).is_unspaced else 1)
    if num_words > max_words or _REFUSAL.search(source):
        return ""
    return f"begins with {' '.join(refusal[0].split())[:80]!r}"
