"""Which options may be moved: those that speak of others keep their place or the order, in seven languages."""

import pytest

from mmed_jax.evaluation.prompts.option_order import has_references, keeps_place, shuffle_options

DRUGS = {"A": "aspirin", "B": "heparin", "C": "digoxin", "D": "insulin"}

# Options apart by "|" or a line.
TIED = """
A and C|Both A and B|B, C and D|A + B|A et C|A和C|Only B and D|A, B, and C|All except A
Las respuestas 1 y 2 son las correctas.
1 y 3 son correctas.|1,2 y 3.|Option 1 and 2|Both option 2 and 3|Both (A) & (C)|'B' & 'C'|Both AB|Both|Both.
Ambos.|Both are correct|Neither of the above
Les réponses A et C sont exactes|Верны ответы 1 и 3|A和C都对|上記のAとB|A와 B|两者都是|둘 다
The first two|The first two options|First two are correct|The last two|The first three of these
Only the first two|the two above|The latter two
Options A through C|Choices A to C|A through C|A-C|A – C|Answers A–C|Options one and two
The first and the third|First and third options|1 and 3|1 & 3
Both of these|Both of the above|both of them|Both answers are correct|Either of these|Neither of these
Neither one
All but B|All of the above except C|Everything except D|Any except B|All but A and C
All options except for B|None except A
A or B|Either A or C|A and/or B|A as well as C|A plus C|Both A & C|A but not B|Neither A nor B
A combination of A and B|Same as A
Las dos primeras|Los dos primeros|Las dos primeras son correctas|Las tres primeras opciones|Las dos últimas
La primera y la tercera|Ambas son correctas|Ambas respuestas son correctas
De la A a la C|Opciones A a C|Todas excepto la B|Todas menos la C|Ni A ni B|Tanto A como B
A y C son correctas|1 y 3|Las dos|Las dos anteriores|Todas salvo B
Les deux premières|Les deux premiers|Les trois premières réponses|Les deux dernières propositions
La première et la troisième|Les deux|Les deux réponses sont exactes
De A à C|Réponses A à C|Toutes sauf B|Toutes les réponses sauf C|Ni A ni B|A et B|1 et 3|Tous sauf A
Les réponses A et B|Aucune des deux
Первые два|Первые два варианта|Первые три|Последние два ответа|Первый и третий|Оба варианта верны|Оба|Обе
Оба ответа верны|И то, и другое|Ни то, ни другое
От А до В|А, Б и В|А и Б|Все, кроме Б|Всё, кроме В|1 и 3|Верны А и С|Варианты 1 и 2|Ни А, ни Б|Только А и В
Ответы А и Б верны
前两项都对|前两项|前三项|前两者|前两个选项|后两项都对|前三项均正确|①②|①和③|①②③|①、③|AB均正确|A、B均是
A、B、C都是|ABC都对|AB两项|除B外都对|除B以外都对|A至C|A到C|两者都对|二者均可|两者皆是|二者都不是|A或B
选项A和B|选项A、B都正确|只有A和C|第一和第三项|A和B都不对
最初の2つ|最初の二つ|前の二つ|最後の2つ|①と②|①②③|AとBの両方|AとC|AからCまで|A～C|AおよびB|両方
両方とも正しい|両者|どちらも正しい|どちらも|どちらでもない|B以外すべて|B以外|選択肢AとB|AとB|二つとも|1と3
처음 두 개|앞의 두 가지|처음 두 가지 모두|위의 두 가지|A와 C|A와 B 모두|①과 ②|①, ②|A부터 C까지|둘 다 맞다
둘 모두|두 가지 모두|B를 제외한 모두|B 이외 모두|보기 A와 B|1과 3|마지막 두 개|1번과 3번
"""
STAYS = """
None of the above|All of the above.|Todas las anteriores|Aucune de ces réponses|以上都不是|上記のすべて
위의 모두|Все перечисленное|Ни один из перечисленных|Ninguna es correcta.
Ninguna opción es correcta.|Todas las opciones son correctas.|Ninguno.|Todas son adecuadas.|All true
All are correct|None|ALL|None of above|都不是|以上都是|該当なし|上記すべて|없음|해당 없음
Toutes les réponses|Все ответы верны|Нет правильного ответа
More than one of the above|Two of the above|At least two of the above|Any two of the above|Some of the above
One or more of the above|Several of these|Most of the above|Only one of the above|More than one is correct
More than one answer is correct|More than one of these
AOTA|NOTA|AOTA.|A.O.T.A.|N.O.T.A.|aota|All of these|None of these options|None of the choices
None of the other answers|All of the other options|Ninguna de las otras|Aucune des autres réponses
None of the listed|None of the answers is correct|None of the options listed|Any of the above|All the above
All of the above are correct|All options are correct|None of them|All statements are true
None of the statements is correct|A combination of the above|All answers are correct|No correct answer
No answer is correct|None of the given options|Each of the above|Any of these|Not listed above
Todas las respuestas anteriores son correctas|ninguna de las anteriores
Ninguna de las anteriores es correcta|Todo lo anterior|Ninguno de los anteriores
Cualquiera de las anteriores|Más de una de las anteriores|Más de una es correcta|Dos de las anteriores
Varias de las anteriores|Todas ellas|Ninguna de ellas|Todos los anteriores|Ninguna respuesta es correcta
Todas las anteriores son verdaderas|Ninguna de las respuestas anteriores|No hay respuesta correcta
Todos los mencionados|Ninguno de los mencionados
toutes les réponses précédentes|Toutes les réponses sont exactes|Aucune des réponses ci-dessus
Aucune des réponses précédentes|Toutes ces réponses|Tout ce qui précède|Aucun des précédents
Plusieurs des réponses ci-dessus|Plus d'une des réponses précédentes|Plus d'une réponse est exacte
Toutes les propositions sont exactes|Aucune proposition n'est exacte|Toutes les propositions précédentes
Rien de tout cela|Aucune bonne réponse|Aucune de ces propositions|Toutes|Aucune
все перечисленное|Всё вышеперечисленное|Все вышеперечисленное верно|Ничего из перечисленного
Ничего из вышеперечисленного|Ни один из вариантов|Ни один из ответов|Все ответы правильные|Верно все
Верно всё перечисленное|Все варианты верны|Более одного из перечисленного|Несколько из перечисленных
Два из перечисленных|Правильного ответа нет|Нет верного ответа|Ни одно из перечисленного
Все из перечисленного|Все указанные|Ни один ответ не верен|Все верно|Любой из перечисленных
Все утверждения верны
以上选项|以上选项都对|以上选项均不正确|以上都对|以上全部|以上均可|以上皆非|以上皆是|上述都是|上述均正确
上列各项|都对|都正确|均正确|全部正确|全都对|全对|都不对|均不是|皆是|均可|都可以|无正确答案|没有正确答案
所有选项|所有选项都正确|上面都对|前面都对|以上答案都不对|以上有两项正确|多项正确|不止一项正确|以上多项|全选
以上任何一项
上記すべて|上記のすべて|以上すべて|上のすべて|すべて正しい|すべて|全て|いずれも正しい|いずれも正しくない
いずれでもない|どれでもない|該当なし|該当するものはない|上記のいずれでもない|上記以外|上記のうち複数
すべての選択肢|正解なし|該当する選択肢はない|どれも正しくない|全部|全部正しい|選択肢すべて|すべて該当する
複数が正しい
위의 모두|위 모두|위의 모든 것|상기 모두|위 보기 모두|보기 모두|모두 맞다|모두 옳다|모두 정답|모두|전부
모두 해당|해당 없음|해당사항 없음|정답 없음|없음|위의 것 중 둘 이상|둘 이상|위 항목 모두|모두 아니다
위의 어느 것도 아니다|어느 것도 아니다|모든 보기|위 중 두 개 이상|답 없음|모두 옳지 않다|위의 모든 항목
"""
MOVE = """
Vitamins A and D|Hepatitis A|A|C. difficile and B. cereus|Both kidneys|Ambas manos|Only molars
All nucleated cells|Todos los cuerpos cetónicos|Aumentan las respuestas inmunitarias.|HM 1 and 2|1,2
Adrenérgicos 1 y 2.|98％以上。|위의 염증|全血|2 weeks only|Apo E and Apo B-100|C and E|Нет|Одна
The first two weeks|First trimester|First and second ribs|The last two vertebrae|More than one lesion
Two of the three coronary arteries|Some of the platelets|First-line therapy|All but the youngest children
1-3|1 to 3 days|2-4 mg|The first dose|Options for surgery|Nota bene|All four limbs|None of the patients died
Any antibiotic|Aorta|Both eyes|All cranial nerves|A and B blood groups|None (no treatment)|Option B vaccine
Hepatitis A, B and C|1 and 2 mg|T and B cells|The other kidney|Other antibiotics
Las dos primeras semanas|Los dos riñones|La primera dosis|Más de una dosis|Dos de cada tres pacientes
Ninguna lesión visible|Cualquier antibiótico|Todo el colon|La respuesta inmune anterior a la infección
Les deux reins|Les deux premières semaines|Plusieurs lésions cutanées|Toutes les artères coronaires
Aucun traitement|Plus d'une semaine|La première dose|Rien par la bouche|Toutes les réponses immunitaires
Первые два месяца|Первые два ребра|Обе почки|Все артерии|Ни одной дозы|Оба яичника|Более одного очага
Несколько лимфоузлов|Все слои стенки|Два раза в день
前两周|前三个月|后两根肋骨|两者之间|全身|全部切除|均匀|多项检查|第一和第三肋|都市人群|所有患者|无症状|以后
以上腹部为主|以上肢为著|前列腺|可以下床|A型和B型|维生素A和D|上面部|对症治疗
最初の2週間|前立腺|両側|両方の腎臓|上肢|全身|すべての血管|どちらかの腎臓|最後の肋骨|全部切除|複数の病変
上記症状が続く|ビタミンAとD|A型とB型
처음 두 달|앞의 염증|두 가지 약물|위 출혈|위 모양|모두걸기|전부하|모든 환자|둘째 날|비타민 A와 D|A형과 B형
위의 상부|보기 흉한 흉터|두 개의 신장|위궤양
"""


def options_of(text: str) -> list[str]:
    return text.strip().replace("\n", "|").split("|")


def orders(options: dict[str, str], answer: str = "B") -> set[str]:
    """The orders that twenty questions with these options are asked in."""
    record = {"question": "Which one?", "options": options, "answer_idx": answer}
    return {shuffle_options({**record, "id": f"q{n}"}, 0, "b")[1] for n in range(20)}


@pytest.mark.parametrize("text, expected", [(TIED, "tied"), (STAYS, "stays"), (MOVE, "moves")])
def test_what_an_option_speaks_of(text, expected):
    def found(option: str) -> str:
        return "tied" if has_references({**DRUGS, "E": option}) else "stays" if keeps_place(option) else "moves"

    assert {option: found(option) for option in options_of(text) if found(option) != expected} == {}


def test_what_it_means_for_the_order():
    """All stays behind the others, which move; "A and C" leaves all as it is; anything else moves."""
    assert orders({**DRUGS, "E": "A and C"}) == {"ABCDE"}
    above = orders({**DRUGS, "E": "More than one of the above"})
    assert all(order[-1] == "E" for order in above) and len(above) > 5
    assert orders({**DRUGS, "C": "All of the above"}) == {"ABCD", "BACD"}  # nothing of the first two gets behind it
    assert len({order.index("E") for order in orders({**DRUGS, "E": "The first two weeks"})}) > 2


@pytest.mark.parametrize("pair", [("да", "нет"), ("有", "无"), ("yes", "no"), ("Some", "None")])
def test_yes_and_no_change_places(pair):
    assert orders(dict(zip("AB", pair)), "A") == {"AB", "BA"}


@pytest.mark.parametrize(
    "texts",
    [
        ("1 and 2", "2 and 3", "1 and 3", "All"),
        ("A only", "B only", "C only", "A and B"),
        ("①②", "①③", "②④", "③④"),
        ("①", "②", "③", "①和②"),
        ("1", "2", "3", "1 and 3"),
        ("First", "Second", "Third", "First and second"),
        ("A", "B", "AB", "O"),
        ("1 to 3", "4 to 6", "7 to 8", "More"),
    ],
)
def test_numbered_statements_are_not_options(texts):
    """Where all options are of the form "1 and 2" they number what the question lists."""
    assert not has_references(dict(zip("ABCD", texts))) and len(orders(dict(zip("ABCD", texts)))) > 3


def test_a_long_option_is_read_in_no_time():
    """A loop that goes back would never end here."""
    for part in ("a ", "the option of ", "1, ", "모두 ", "以上的", "todas "):
        assert not has_references({**DRUGS, "E": part * 20_000 + "x"})
        keeps_place(part * 20_000 + "x")
