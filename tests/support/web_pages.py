"""Pages of medical sites in seven languages as sites send them, and WARC files of them; written for the tests."""

import gzip
import io

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

# A title and paragraphs; then menu, sidebar and footer, of which nothing belongs into a corpus.
ARTICLES = {
    "en": (
        "Anaemia: causes and treatment",
        (
            "Anaemia means that the blood has too few red cells or too little haemoglobin to carry enough oxygen.",
            "Lack of iron is the most common cause, often after heavy periods or slow bleeding from the bowel.",
            "Patients are pale and tired, get out of breath on stairs, and may notice a fast heartbeat at rest.",
            "A blood count, ferritin and vitamin B12 show the kind of anaemia and where doctors should look next.",
            "Iron tablets are taken for three months after the haemoglobin is normal again, so that stores fill up.",
        ),
        ("Home", "Departments", "Book an appointment", "Careers"),
        "Most read this week: ten tips for a healthy breakfast",
        "All rights reserved. Privacy notice. Cookie settings.",
    ),
    "zh": (
        "缺铁性贫血的诊断与治疗",
        (
            "贫血是指外周血中红细胞或血红蛋白减少，不能为组织输送足够的氧气，是临床上十分常见的症状。",
            "缺铁是最常见的原因，多见于月经量过多的女性以及消化道慢性出血的患者，儿童生长发育期也容易发生。",
            "患者常有面色苍白、乏力、头晕、心悸等表现，活动后气短更加明显，严重时可出现心力衰竭。",
            "血常规、血清铁蛋白和维生素测定可以明确贫血的类型，必要时还应进行胃镜和肠镜检查寻找出血的部位。",
            "口服铁剂应在血红蛋白恢复正常以后继续服用三个月，以补足体内的储存铁，同时应当治疗原发疾病。",
        ),
        ("首页", "科室导航", "预约挂号", "招聘信息"),
        "本周热门文章：健康早餐的十个建议",
        "版权所有 隐私声明 网站地图",
    ),
    "ja": (
        "貧血の原因と治療",
        (
            "貧血とは血液中の赤血球またはヘモグロビンが減少し、全身に十分な酸素を運べなくなった状態をいう。",
            "原因として最も多いのは鉄の不足であり、月経過多や消化管からの慢性的な出血によって起こることが多い。",
            "患者は顔色が悪く疲れやすくなり、階段を上ると息切れがし、安静にしていても動悸を感じることがある。",
            "血液検査でフェリチンやビタミンを調べると貧血の種類が分かり、必要に応じて内視鏡検査が行われる。",
            "鉄剤はヘモグロビンが正常に戻ったあとも三か月ほど続けて服用し、体内に貯蔵される鉄を補う必要がある。",
        ),
        ("ホーム", "診療科の案内", "予約はこちら", "採用情報"),
        "今週よく読まれた記事：健康的な朝食のための十の助言",
        "無断転載を禁じます　個人情報の取り扱い",
    ),
    "ko": (
        "빈혈의 원인과 치료",
        (
            "빈혈은 혈액 속의 적혈구나 혈색소가 줄어들어 온몸에 산소를 충분히 운반하지 못하는 상태를 말한다.",
            "가장 흔한 원인은 철분 부족이며 월경량이 많은 여성이나 위장관에서 서서히 출혈이 있는 환자에게 잘 생긴다.",
            "환자는 얼굴이 창백하고 쉽게 피로하며 계단을 오를 때 숨이 차고 가만히 있어도 가슴이 두근거릴 수 있다.",
            "혈액검사로 페리틴과 비타민을 확인하면 빈혈의 종류를 알 수 있고 필요하면 내시경 검사를 시행한다.",
            "철분제는 혈색소가 정상으로 돌아온 뒤에도 석 달 동안 계속 복용하여 몸에 저장된 철을 채워야 한다.",
        ),
        ("처음으로", "진료과 안내", "진료 예약하기", "채용 정보"),
        "이번 주 많이 읽은 글: 건강한 아침 식사를 위한 조언",
        "모든 권리 보유. 개인정보 처리방침.",
    ),
    "fr": (
        "L'anémie : causes et traitement",
        (
            "L'anémie est une baisse de l'hémoglobine : le sang ne transporte plus assez d'oxygène vers les tissus.",
            "Le manque de fer en est la première cause, souvent après des règles abondantes ou un saignement digestif.",
            "Les patients sont pâles et fatigués, s'essoufflent dans les escaliers et ressentent des palpitations.",
            "La numération, la ferritine et la vitamine B12 précisent le type d'anémie et orientent les examens.",
            "Le fer est pris pendant trois mois après le retour à la normale, afin de reconstituer les réserves.",
        ),
        ("Accueil", "Nos services", "Prendre rendez-vous", "Recrutement"),
        "Les plus lus : dix conseils pour le petit-déjeuner",
        "Tous droits réservés. Mentions légales. Gestion des cookies.",
    ),
    "es": (
        "La anemia: causas y tratamiento",
        (
            "La anemia es la falta de hemoglobina: la sangre ya no lleva oxígeno suficiente a los tejidos del cuerpo.",
            "La causa más frecuente es la falta de hierro, a menudo por reglas abundantes o una hemorragia digestiva.",
            "Los pacientes están pálidos y cansados, se ahogan al subir escaleras y pueden notar palpitaciones.",
            "El hemograma, la ferritina y la vitamina B12 muestran el tipo de anemia y qué pruebas hacen falta.",
            "El hierro se toma tres meses más cuando la hemoglobina ya es normal, para reponer los depósitos.",
        ),
        ("Inicio", "Especialidades", "Pedir cita", "Empleo"),
        "Lo más leído: diez consejos para un desayuno sano",
        "Reservados todos los derechos. Aviso legal. Cookies.",
    ),
    "ru": (
        "Анемия: причины и лечение",
        (
            "Анемия — это снижение уровня гемоглобина, при котором кровь не переносит достаточно кислорода.",
            "Самая частая причина — нехватка железа, нередко из-за обильных месячных или кровотечения из кишечника.",
            "Больные бледны и быстро устают, задыхаются при подъёме по лестнице и ощущают сердцебиение в покое.",
            "Общий анализ крови, ферритин и витамин B12 показывают вид анемии и подсказывают, что искать дальше.",
            "Препараты железа принимают ещё три месяца после нормализации гемоглобина, чтобы восполнить запасы.",
        ),
        ("Главная", "Отделения", "Запись на приём", "Вакансии"),
        "Самое читаемое: десять советов для здорового завтрака",
        "Все права защищены. Политика конфиденциальности.",
    ),
}
OWN = "https://clinic.example.org/anaemia"


def page(language: str, head: str = "", charset: str = "utf-8") -> bytes:
    """A page of a site: menu, article, sidebar, footer. head: more of its head."""
    title, paragraphs, menu, aside, footer = ARTICLES[language]
    items = "".join(f'<li><a href="/{n}">{text}</a></li>' for n, text in enumerate(menu))
    body = "\n".join(f"<p>{text}</p>" for text in paragraphs)
    return (
        f"<!DOCTYPE html>\n<html><head>{head}<title>{title} | example.org</title><style>p {{ margin: 0 }}</style>"
        f"<script>var page = 1;</script></head>\n<body><header><nav><ul>{items}</ul></nav></header>\n"
        f"<main><article><h1>{title}</h1>\n{body}\n</article>\n"
        f"<aside><h3><a href='/top'>{aside}</a></h3></aside></main>\n"
        f"<footer><p>{footer}</p></footer></body></html>"
    ).encode(charset, "xmlcharrefreplace")


def record(
    body: bytes = b"",
    url: str = OWN,
    status: str = "200 OK",
    kind: str = "text/html",
    type: str = "response",
    **headers: str,
) -> bytes:
    """A record as crawlers write it, not packed. headers: of HTTP, with _ for -."""
    out = io.BytesIO()
    writer = WARCWriter(out, gzip=False, warc_version="WARC/1.0")
    http = [("Content-Type", kind)] if kind else []
    http += [(name.replace("_", "-"), value) for name, value in headers.items()]
    about = {"WARC-Date": "2026-01-31T00:00:00Z", "WARC-Record-ID": f"<urn:uuid:{len(body)}>"}
    if type == "warcinfo":
        writer.write_record(writer.create_warcinfo_record("x.warc", {"software": "a crawler"}))
        return out.getvalue()
    line = StatusAndHeaders(status, http, protocol="HTTP/1.1" if type == "response" else "GET / HTTP/1.1")
    writer.write_record(
        writer.create_warc_record(url, type, io.BytesIO(body), http_headers=line, warc_headers_dict=about)
    )
    return out.getvalue()


def warc(records: list[bytes], packed: bool) -> bytes:
    """A file of records; packed: each a gzip member, as the standard asks."""
    return b"".join(gzip.compress(r, mtime=0) if packed else r for r in records)
