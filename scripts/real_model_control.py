"""Records of the form of both stages without any medicine: the control of scripts/real_model.sh."""

import random
from collections.abc import Iterator
from typing import Any

SEED = 20240909

# Words of four kinds a language; a question asks for the one word of a kind.
WORDS: dict[str, dict[str, str]] = {
    "en": {
        "a colour": "red blue green yellow white black purple brown",
        "an animal": "horse sheep eagle dolphin camel rabbit wolf goat",
        "a tool": "hammer saw drill spade pliers chisel axe file",
        "a piece of furniture": "table chair shelf sofa bed desk wardrobe bench",
    },
    "es": {
        "un color": "rojo azul verde amarillo blanco negro morado gris",
        "un animal": "caballo oveja águila delfín camello conejo lobo cabra",
        "una herramienta": "martillo sierra taladro pala alicates cincel hacha lima",
        "un mueble": "mesa silla estante sofá cama escritorio armario banco",
    },
    "fr": {
        "une couleur": "rouge bleu vert jaune blanc noir violet gris",
        "un animal": "cheval mouton aigle dauphin chameau lapin loup chèvre",
        "un outil": "marteau scie perceuse pelle pince ciseau hache lime",
        "un meuble": "table chaise étagère canapé lit bureau armoire banc",
    },
    "zh": {
        "颜色": "红色 蓝色 绿色 黄色 白色 黑色 紫色 灰色",
        "动物": "马 绵羊 老鹰 海豚 骆驼 兔子 狼 山羊",
        "工具": "锤子 锯子 电钻 铁锹 钳子 凿子 斧头 锉刀",
        "家具": "桌子 椅子 书架 沙发 床 书桌 衣柜 长凳",
    },
    "ja": {
        "色": "赤 青 緑 黄色 白 黒 紫 灰色",
        "動物": "馬 羊 鷲 イルカ ラクダ ウサギ 狼 ヤギ",
        "道具": "金槌 鋸 ドリル シャベル ペンチ 鑿 斧 やすり",
        "家具": "机 椅子 本棚 ソファ ベッド 戸棚 箪笥 長椅子",
    },
    "ko": {
        "색": "빨강 파랑 초록 노랑 하양 검정 보라 회색",
        "동물": "말 양 독수리 돌고래 낙타 토끼 늑대 염소",
        "도구": "망치 톱 드릴 삽 펜치 끌 도끼 줄",
        "가구": "탁자 의자 선반 소파 침대 책상 옷장 벤치",
    },
}
ASK_WORD = {
    "en": "Which of these words names {}?",
    "es": "¿Cuál de estas palabras nombra {}?",
    "fr": "Lequel de ces mots désigne {} ?",
    "zh": "下列哪个词表示{}？",
    "ja": "次のうち{}を表す言葉はどれですか。",
    "ko": "다음 중 {}을(를) 나타내는 낱말은?",
}
ASK_SUM = {
    "en": "How much is {} + {}?",
    "es": "¿Cuánto es {} + {}?",
    "fr": "Combien font {} + {} ?",
    "zh": "{} + {} 等于多少？",
    "ja": "{} + {} はいくつですか。",
    "ko": "{} + {} 은(는) 얼마입니까?",
}
ASK_LIST = {
    "en": ("Which words name {}?", "Words that name {} are, for example: {}. There are many more of them."),
    "es": ("¿Qué palabras nombran {}?", "Palabras que nombran {} son, por ejemplo: {}. Hay muchas más."),
    "fr": ("Quels mots désignent {} ?", "Des mots qui désignent {} sont, par exemple : {}. Il y en a bien d'autres."),
    "zh": ("哪些词表示{}？", "表示{}的词有，例如：{}。这样的词还有很多。"),
    "ja": (
        "{}を表す言葉には何がありますか。",
        "{}を表す言葉は、例えば、{}です。ほかにもあります。",
    ),
    "ko": (
        "{}을(를) 나타내는 낱말에는 무엇이 있습니까?",
        "{}을(를) 나타내는 낱말은 {} 등입니다. 더 많습니다.",
    ),
}


def control_answers(count: int) -> Iterator[dict[str, Any]]:
    """`count` instruction records: lists of words."""
    draw = random.Random(SEED)
    languages = list(WORDS)
    for i in range(count):
        language = languages[i % len(languages)]
        kind, words = draw.choice(list(WORDS[language].items()))
        question, answer = ASK_LIST[language]
        chosen = draw.sample(words.split(), 6)
        messages = [
            {"role": "user", "content": question.format(kind)},
            {"role": "assistant", "content": answer.format(kind, ", ".join(chosen))},
        ]
        yield {"id": f"control-{i}", "language": language, "messages": messages, "source": "control"}


def control_questions(count: int) -> Iterator[dict[str, Any]]:
    """`count` multiple-choice records of four options, sums and words in turn; every letter is right as often."""
    draw = random.Random(SEED)
    languages = list(WORDS)
    for i in range(count):
        language = languages[i % len(languages)]
        question, right, wrong = (sum_question, word_question)[i // len(languages) % 2](language, draw)
        place = i // (2 * len(languages)) % 4
        options = [*wrong[:place], right, *wrong[place:]]
        yield {
            "id": f"control-{i}",
            "language": language,
            "question": question,
            "options": dict(zip("ABCD", options, strict=True)),
            "answer_idx": "ABCD"[place],
            "rationale": "",
            "source": "control",
        }


def sum_question(language: str, draw: random.Random) -> tuple[str, str, list[str]]:
    """(question, right answer, three wrong ones): a sum of two numbers below 50."""
    a, b = draw.randrange(2, 50), draw.randrange(2, 50)
    near = [a + b + d for d in (-10, -3, -2, -1, 1, 2, 3, 10) if a + b + d > 0]
    return ASK_SUM[language].format(a, b), str(a + b), [str(n) for n in draw.sample(near, 3)]


def word_question(language: str, draw: random.Random) -> tuple[str, str, list[str]]:
    """(question, right answer, three wrong ones): the one word of a kind, among one word of each other kind."""
    kinds = list(WORDS[language].items())
    draw.shuffle(kinds)
    right, *wrong = [draw.choice(words.split()) for _, words in kinds]
    return ASK_WORD[language].format(kinds[0][0]), right, wrong
