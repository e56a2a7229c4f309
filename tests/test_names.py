from pipeline.names import cluster_terms


def test_a_cluster_is_named_by_what_the_others_do_not_say() -> None:
    texts = {
        3: ["the court ruled on the contract", "a contract before the court", "court costs of the contract"],
        7: ["the oven bakes the bread", "bread from the oven", "oven warm bread"],
    }
    names = cluster_terms(texts, num_terms=2)
    assert set(names[3].split()) == {"court", "contract"}
    assert set(names[7].split()) == {"oven", "bread"}


def test_a_word_of_one_text_alone_names_no_cluster() -> None:
    texts = {0: ["zebra zebra zebra zebra common", "common thing"], 1: ["other words", "other matters"]}
    assert cluster_terms(texts)[0].split() == ["common"]


def test_text_without_words_has_an_empty_name() -> None:
    assert cluster_terms({0: ["12 34"], 1: ["…"]}) == {0: "", 1: ""}
    assert cluster_terms({}) == {}
