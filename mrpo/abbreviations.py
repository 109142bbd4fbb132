"""Dotted words of radiology and pathology prose, by what a dot after them says about the end of a sentence.

All entries are lower case and without their last dot. `mrpo.sentences` reads them.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Nothing ends a sentence after these: they announce what follows.
NEVER_LAST = _words(
    "dr mr mrs ms prof st ste mt messrs rev gen sen "
    "fig figs eq eqs sec ref refs tab vol ed eds pp chap ver "
    "approx aprox env ca cf vs viz resp incl inkl excl esp bzw ggf e.g i.e eg ie z.b d.h u.a p.ex n.b "
    "dx'd d.d s.p c.w w.r.t "
    "proc foram gangl fasc staph strep mycobact pseud enterob lactob clostr"
)
# These end a sentence only if the next word is one that opens sentences.
SELDOM_LAST = _words(
    "al inc jr sr dept hosp univ assoc max min avg temp diam circ lat med ant post sup inf prox dist bilat unilat "
    "neg pos hx dx tx rx sx fx pt pts est spp sp subsp var art vein lig musc "
    "i.v i.m s.c s.l a.c p.c u.s u.k m.d ph.d c.f a.k.a a.p p.a"
)
# These end a sentence before any capital but the name of a day or month.
LAST_BEFORE_CAPITAL = _words("etc a.m p.m p.o b.i.d t.i.d q.i.d q.d o.d q.h q.h.s h.s p.r.n")
CALENDAR = _words(
    "monday tuesday wednesday thursday friday saturday sunday "
    "january february march april may june july august september october november december"
)
UNITS = _words(
    "mm cm dm m km um nm ml dl cl l cc mg kg g gy mgy hu t hz khz mhz kv kvp mas ms ma s sec secs min mins "
    "hr hrs wk wks mo mos yr yrs deg in ft lb lbs oz mmhg kpa bpm mmol mol iu meq"
)
# What may follow a unit's dot and still belong to the quantity: "120 mm. Hg", "4 deg. C".
UNIT_COMPLEMENTS = _words("hg h2o c f k")
# Abbreviations only ahead of a number: "No. 3", "Jan. 5".
BEFORE_NUMBER = _words("no nos nr ok ung jan feb mar apr jun jul aug sep sept oct nov dec")
# A capital after one of these letters' dots opens a sentence: "hepatitis B. Cirrhosis".
BEFORE_NAMED_LETTER = _words(
    "vitamin hepatitis type group option panel image figure stage grade class answer choice category factor view arrow "
    "label level influenza child-pugh"
)
OPENERS = _words(
    "the this that these those there here it its he she his her they their we our i you a an in on at as of for from "
    "with without within if no not both each all some any one two several however therefore thus hence so then also "
    "additionally furthermore moreover finally first second next overall given based because since while when where "
    "what which although though but and or is are was were let now after before by to among between compared "
    "considering patient patients"
)
# Of these only a few open a sentence that is typed without its capital.
LOWER_CASE_OPENERS = _words("the this these those there it")
# In lower case these open no sentence: a dot before them ends an abbreviation.
NEVER_FIRST = _words("and or of is are was were has have than by which")
# A line that ends in one of these goes on in the next line.
CONTINUING = _words(
    "the a an of in on at to with and or for by from is are was were be as than that which into within without between "
    "this these its his her their both not but via per"
)
