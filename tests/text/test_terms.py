import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text.terms import cluster_terms, detect_language

FRENCH = [
    "Le jeune homme regardait la mer et pensait à sa mère qui était dans la maison.",
    "La vieille maison de la mer était à un jeune homme qui ne parlait pas.",
    "Il n'est pas dans la maison, le jeune homme, mais sur la mer avec les autres.",
]


def test_a_cluster_is_named_by_what_the_others_do_not_say() -> None:
    texts = {
        3: ["the court ruled on the contract", "a contract before the court", "court costs of the contract"],
        7: ["the oven bakes the bread", "bread from the oven", "oven warm bread"],
    }
    names = cluster_terms(texts, num_terms=2)
    assert set(names[3].split(", ")) == {"court", "contract"}
    assert set(names[7].split(", ")) == {"oven", "bread"}


def test_a_phrase_stands_for_the_words_that_are_in_it_most_of_the_time() -> None:
    texts = {
        0: [
            "machine learning models",
            "deep machine learning",
            "learning by machine learning; a recipe",
            "machine learning, models",
        ],
        1: ["the oven and the bread", "bread, oven", "an oven for bread"],
    }
    names = cluster_terms(texts, num_terms=2)
    assert names[0] == "machine learning, models"
    assert set(names[1].split(", ")) == {"oven", "bread"}  # beside each other by chance, with a stop word or a comma between


def test_a_longer_phrase_wins_over_one_that_lies_in_it() -> None:
    texts = {0: ["new york stock prices", "york: new york stock", "the new york stock rally"], 1: ["oven bread", "bread", "oven"]}
    assert cluster_terms(texts, num_terms=1)[0] == "york stock"  # new is a stop word
    texts[0] = [text.replace("new", "upper") for text in texts[0]]
    assert cluster_terms(texts, num_terms=1)[0] == "upper york stock"


def test_a_word_of_one_text_alone_names_no_cluster() -> None:
    texts = {0: ["zebra zebra zebra zebra ledger", "ledger thing"], 1: ["violin words", "violin matters"]}
    assert cluster_terms(texts)[0] == "ledger"


def test_stop_words_are_those_of_the_language_found() -> None:
    names = cluster_terms({0: FRENCH, 1: ["the oven and the bread", "bread from an oven"]})
    assert names[0].split(", ")[:3] == ["homme", "jeune", "maison"] or "jeune homme" in names[0]
    assert not {"qui", "dans", "est", "pas", "était"} & set(names[0].replace(",", "").split())


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (" ".join(FRENCH), "fr"),
        ("The cat sat on the mat, and it was not what we had thought it would be.", "en"),
        ("Der Hund ist in dem Haus, und die Katze war nicht auf der Straße.", "de"),
        ("El perro está en la casa y no quiere salir porque hace mucho frío.", "es"),
        ("xqzt wvbn", "en"),
        ("", "en"),
    ],
)
def test_a_language_is_known_by_its_stop_words(text: str, code: str) -> None:
    assert detect_language(text.lower().replace(",", "").replace(".", "").split()) == code


def test_korean_is_named_by_words_and_not_by_particles() -> None:
    texts = {0: ["대통령 선거 는 이", "선거 대통령 의", "이 선거 대통령"], 1: ["oven bread", "bread oven"]}
    assert set(cluster_terms(texts)[0].replace(",", "").split()) == {"대통령", "선거"}


def test_text_without_words_has_an_empty_name() -> None:
    assert cluster_terms({0: ["12 34"], 1: ["…"]}) == {0: "", 1: ""}
    assert cluster_terms({}) == {}


@given(st.dictionaries(st.integers(0, 5), st.lists(st.text(max_size=60), max_size=4), max_size=4), st.integers(1, 5))
def test_names_are_of_words_of_the_text_and_none_is_in_two_terms(texts: dict[int, list[str]], num_terms: int) -> None:
    names = cluster_terms(texts, num_terms)
    assert names.keys() == {cluster for cluster in texts if texts[cluster]}
    for cluster, name in names.items():
        terms = [term.split() for term in name.split(", ")] if name else []
        words = [word for term in terms for word in term]
        assert len(terms) <= num_terms
        assert len(words) == len(set(words))
        assert all(word in " ".join(texts[cluster]).lower() for word in words)
    assert names == cluster_terms(dict(reversed(texts.items())), num_terms)
