"""Texts of the corpus tests: a medical page and an ordinary one in each language, written for them."""

MEDICAL = {
    "en": "The patient was admitted with fever, dyspnea and chest pain. Tomography showed a pulmonary embolism. "
    "Treatment began with an intravenous anticoagulant; warfarin followed. Comorbidities were hypertension "
    "and diabetes, for which she takes metformin. Creatinine was normal, and the prognosis is good.",
    "zh": "患者因发热、咳嗽和呼吸困难入院。实验室检查提示白细胞升高，胸部造影显示肺炎。给予抗生素静脉注射治疗，并用"
    "胰岛素控制糖尿病。三天后症状好转，预后良好，未见并发症和不良反应。",
    "ja": "患者は発熱と呼吸困難で入院した。血液検査で白血球の増加を認め、画像診断により肺炎と診断された。抗菌薬の投"
    "与を開始し、糖尿病に対してインスリンを使用した。三日後に症状は改善し、合併症はなく、予後は良好である。",
    "ko": "환자는 발열과 호흡곤란으로 병원에 왔다. 혈액검사에서 백혈구가 늘었고 폐렴으로 진단되었다. 항생제 투여를 "
    "시작하였고 당뇨에는 인슐린을 사용하였다. 사흘 뒤 증상이 좋아졌으며 합병증이나 부작용은 없었다. 예후는 "
    "좋다.",
    "fr": "Le patient a été hospitalisé pour une fièvre et une dyspnée. La radiographie a montré une pneumonie. Un "
    "antibiotique par voie intraveineuse a été donné, puis de l'insuline pour son diabète. Les symptômes ont "
    "disparu en trois jours ; le pronostic est bon, sans insuffisance rénale.",
    "es": "El paciente ingresó con fiebre y disnea. La radiografía mostró una neumonía. Recibió un antibiótico por "
    "vía intravenosa e insulina para su diabetes. A los tres días los síntomas habían desaparecido; el "
    "pronóstico es bueno, sin insuficiencia renal ni otras infecciones.",
    "ru": "Пациент поступил с лихорадкой и одышкой. Рентгенография показала пневмонию. Начато лечение "
    "антибиотиками внутривенно, для лечения диабета назначен инсулин. Через три дня симптомы исчезли, отёков "
    "нет, противопоказаний к выписке нет, диагноз подтверждён.",
}

ORDINARY = {
    "en": "The city council met on Tuesday to discuss the new bridge. Several residents asked when the road would "
    "be open again and what the work would cost. The mayor said that the builders had waited patiently for "
    "good weather, and that trains would run every ten minutes during the summer. A vote on the budget is "
    "planned for next month.",
    "zh": "市议会星期二开会讨论新桥的建设。几位居民询问道路何时重新开放，以及工程需要多少费用。市长表示，施工队一直"
    "在等待好天气，夏天期间火车每十分钟一班。预算将在下个月表决。网站的流量也在增加，公司发展很快。",
    "ja": "市議会は火曜日に新しい橋について話し合った。住民からは、道路がいつ再び開通するのか、工事にいくらかかるの"
    "かという質問が出た。市長は、天気が良くなるのを待っていたと述べ、夏の間は電車が十分ごとに走ると説明した。"
    "予算は来月決まる予定だ。",
    "ko": "시의회는 화요일에 새 다리에 대해 논의했다. 주민들은 도로가 언제 다시 열리는지, 공사에 얼마가 드는지 "
    "물었다. 시장은 건설사가 좋은 날씨를 기다렸으며 여름 동안 열차가 십 분마다 다닌다고 말했다. 눈부신 햇살 "
    "아래 세부종목 경기도 열렸다.",
    "fr": "Le conseil municipal s'est réuni mardi pour parler du nouveau pont. Plusieurs habitants ont demandé "
    "quand la route serait rouverte et combien coûteraient les travaux. Le maire a dit que les ouvriers "
    "attendaient le beau temps et que les trains passeraient toutes les dix minutes pendant l'été. Le budget "
    "sera voté le mois prochain.",
    "es": "El ayuntamiento se reunió el martes para hablar del nuevo puente. Varios vecinos preguntaron cuándo se "
    "abriría de nuevo la carretera y cuánto costarían las obras. El alcalde dijo que los obreros esperaban "
    "el buen tiempo y que los trenes pasarían cada diez minutos durante el verano. El presupuesto se votará "
    "el mes que viene.",
    "ru": "Городской совет собрался во вторник, чтобы обсудить новый мост. Жители спрашивали, когда снова откроют "
    "дорогу и сколько будут стоить работы. Мэр сказал, что рассеянный секретарь потерял план, а на обед "
    "подали чай с печеньем. Летом поезда будут ходить каждые десять минут, ветряная мельница останется на "
    "холме.",
}
