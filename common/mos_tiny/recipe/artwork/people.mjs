// People of the styles that the base learns: their options, who is kept from it, and whom it may see. Nothing is drawn but by `draw`.
import { createAvatar } from '@dicebear/core'
import * as collection from '@dicebear/collection'
import { SIZE, pick, pixels, random } from './pixels.mjs'

export const IDENTITIES = 6, PER_STYLE = 1600

// The character styles the base learns: what makes an identity, what varies between its views, how a caption names it
const NONE = null
export const STYLES = {
  toonHead: {
    frame: { scale: 122, translateY: 8 },
    identity: { hair: ['sideComed', 'undercut', 'spiky', 'bun'], rearHair: [NONE, NONE, 'longStraight', 'longWavy', 'neckHigh'], hairColor: ['2c1b18', 'a55728', 'd6b370', '724133'], beard: [NONE, NONE, 'fullBeard'], skinColor: ['f1c3a5', 'b98e6a', '5c3829'], clothes: ['turtleNeck', 'openJacket', 'shirt', 'tShirt'], clothesColor: ['b11f1f', '0b3286', '147f3c', 'eab308', '731ac3', 'ec4899', 'f97316', '151613', 'e8e9e6'] },
    view: { eyes: ['happy', 'wide'], mouth: ['laugh', 'agape', 'smile', 'sad'], eyebrows: ['happy', 'neutral', 'raised'] },
    allowed: o => !(o.beard && (o.rearHair || o.hair === 'bun')),
    caption: o => ({ hair: o.rearHair && o.rearHair !== 'neckHigh' ? 'long' : 'short', hairKind: { spiky: 'spiky', bun: 'bun' }[o.hair] ?? null, hairColor: o.hairColor, skin: o.skinColor, beard: o.beard ? 'beard' : null, cloth: { turtleNeck: 'sweater', openJacket: 'jacket', shirt: 'shirt', tShirt: 'shirt' }[o.clothes], clothColor: o.clothesColor }),
  },
  micah: {
    frame: { scale: 108, translateY: 2 },
    identity: { hair: ['fonze', 'mrT', 'full', 'pixie', 'turban', 'dannyPhantom'], hairColor: ['000000', 'f4d150', '77311d', '9287ff', '6bd9e9', 'fc909f', 'ffffff'], baseColor: ['f9c9b6', 'ac6651', '77311d'], shirt: ['open', 'crew', 'collared'], shirtColor: ['9287ff', '6bd9e9', 'fc909f', 'f4d150', 'ffffff', '000000'], glasses: [NONE, NONE, NONE, 'round', 'square'], facialHair: [NONE, NONE, NONE, 'beard'] },
    view: { mouth: ['laughing', 'smile', 'sad', 'surprised'], eyes: ['eyes', 'round'] },
    fixed: { glassesColor: ['000000'], earringsProbability: 0, eyebrows: ['up'], nose: ['curve'], ears: ['attached'] },
    allowed: o => !(o.facialHair && o.hair === 'full') && o.hairColor !== o.baseColor,
    caption: o => ({ hair: o.hair === 'turban' ? null : o.hair === 'full' ? 'long' : 'short', hairKind: { mrT: 'mohawk', dannyPhantom: 'spiky' }[o.hair] ?? null, hat: o.hair === 'turban' ? 'turban' : null, hatColor: o.hairColor, hairColor: o.hairColor, skin: o.baseColor, beard: o.facialHair ? 'beard' : null, glasses: o.glasses ? 'glasses' : null, cloth: 'shirt', clothColor: o.shirtColor }),
  },
  personas: {
    frame: { scale: 120, translateY: 6 },
    identity: { hair: ['long', 'bobCut', 'curly', 'curlyHighTop', 'pigtails', 'bald', 'cap', 'beanie', 'straightBun', 'mohawk', 'shortCombover', 'extraLong'], hairColor: ['362c47', '6c4545', 'e15c66', 'f29c65', 'dee1f5'], skinColor: ['eeb4a4', 'd78774', '92594b', '623d36'], body: ['squared', 'rounded'], clothingColor: ['456dff', '54d7c7', '7555ca', '6dbb58', 'e24553', 'f3b63a', 'f55d81'], facialHair: [NONE, NONE, NONE, 'beardMustache'] },
    view: { eyes: ['open', 'happy', 'wink'], mouth: ['smile', 'frown', 'surprise', 'bigSmile'] },
    fixed: { nose: ['mediumRound'] },
    allowed: o => !(o.facialHair && ['long', 'bobCut', 'pigtails', 'straightBun', 'extraLong'].includes(o.hair)),
    caption: o => ({ hair: ['bald', 'cap', 'beanie'].includes(o.hair) ? null : ['long', 'bobCut', 'extraLong', 'pigtails'].includes(o.hair) ? 'long' : 'short', hairKind: { curly: 'curly', curlyHighTop: 'curly', pigtails: 'pigtails', straightBun: 'bun', mohawk: 'mohawk', bald: 'bald' }[o.hair] ?? null, hat: { cap: 'cap', beanie: 'beanie' }[o.hair] ?? null, hatColor: o.hairColor, hairColor: o.hairColor, skin: o.skinColor, beard: o.facialHair ? 'beard' : null, cloth: 'shirt', clothColor: o.clothingColor }),
  },
}
const OPTIONAL = { rearHair: 'rearHairProbability', beard: 'beardProbability', glasses: 'glassesProbability', facialHair: 'facialHairProbability' }

export function draw(style, seed, options, frame = {}) {
  const o = {}
  for (const [k, v] of Object.entries(options)) { if (k in OPTIONAL) o[OPTIONAL[k]] = v === NONE ? 0 : 100; if (v !== NONE) o[k] = Array.isArray(v) || typeof v === 'number' ? v : [v] }
  return pixels(createAvatar(collection[style], { seed, ...frame, ...o, size: SIZE }).toString())
}
export const choose = (r, space) => Object.fromEntries(Object.entries(space).map(([k, a]) => [k, pick(r, a)]))
export function someone(r, s) { for (;;) { const o = choose(r, s.identity); if (s.allowed(o)) return o } }
export const look = o => JSON.stringify(Object.fromEntries(Object.entries(o).filter(([k]) => !/cloth|shirt|body/i.test(k))))  // an identity without its clothes

// Identities that are kept from the base, [style, id, who, random], and all their looks
export function keptPeople() {
  const kept = [], looks = new Set()
  for (const [style, s] of Object.entries(STYLES)) for (let id = 0; id < IDENTITIES; id++) {
    const r = random(`concept/${style}/${id}`); let who; do who = someone(r, s); while (looks.has(style + look(who))); looks.add(style + look(who))
    kept.push([style, id, who, r])
  }
  return [kept, looks]
}

// Characters of one style that the base may see, [who, view]: no look of a kept identity, whatever it wears
export function* trainedPeople(style, kept) {
  const s = STYLES[style], r = random(`train/${style}`), seen = new Set()
  while (seen.size < PER_STYLE) {
    const who = someone(r, s), view = choose(r, s.view), key = JSON.stringify([who, view])
    if (kept.has(style + look(who)) || seen.has(key)) continue
    seen.add(key); yield [who, view]
  }
}
