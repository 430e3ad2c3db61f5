// Renders the art that widens the base's world: node widen.mjs OUT NOUNS.json WIDER_NOUNS.json
// wider.raw/json: icons in five more styles, people in four more, and people of the base's own styles with hair that no kept one has. 64 x 64 straight-alpha RGBA.
// Left out for good: every style and noun that is kept from the base (concepts, fluent, twemoji, the other nouns of NOUNS.json), and what has no open licence.
import { createAvatar } from '@dicebear/core'
import * as collection from '@dicebear/collection'
import { createRequire } from 'module'
import fs from 'fs'
import { SIZE, iconPixels, pick, pixels, random, write } from './pixels.mjs'

const [OUT, NOUNS, WIDER] = process.argv.slice(2), read = file => JSON.parse(fs.readFileSync(file))
const require = createRequire(import.meta.url)
const BROKEN = new Set(['noto package', 'notoV1 cocktail-glass', 'notoV1 woman-juggling-dark-skin-tone', 'notoV1 person-lifting-weights'])  // icons on which resvg aborts
const rows = [], seen = new Set(), old = new Set(read(NOUNS).map(([icon]) => icon))
function add(drawn, label) {
  const key = drawn?.toString('latin1')
  if (!drawn || seen.has(key) || drawn.every((v, i) => i % 4 < 3 || v === 0)) return
  seen.add(key); rows.push([drawn, label])
}

// --- icons. A name may end in -1 (Streamline) or be written without hyphens (Firefox OS)
const SETS = { noto: 'noto', notoV1: 'noto-v1', emojione: 'emojione', fxemoji: 'fxemoji', streamline: 'streamline-emojis' }
const TONES = { '': null, 'light': 'light-skinned', 'medium-light': 'light-skinned', 'medium': null, 'medium-dark': 'dark-skinned', 'dark': 'dark-skinned' }, TONES_EACH = 3
const { things, people } = read(WIDER)
for (const [style, pack] of Object.entries(SETS)) {
  const set = require(`@iconify-json/${pack}/icons.json`), r = random(`wider/${style}`)
  const find = name => [name, `${name}-1`, ...(style === 'fxemoji' ? [name.replaceAll('-', '')] : [])].find(n => set.icons[n])
  for (const [noun, names] of Object.entries(things)) for (const name of names) {
    const icon = find(name)
    if (icon && !BROKEN.has(`${style} ${icon}`) && !(style === 'noto' && old.has(icon))) add(iconPixels(set, icon), { style, icon, noun, kind: 'thing' })
  }
  for (const [name, noun] of Object.entries(people)) {
    const bases = [[name, noun]], deed = name.replace(/^person-/, '')
    if (!/^(man|woman|boy|girl|old|prince)/.test(name)) for (const who of ['man', 'woman']) bases.push([`${who}-${deed}`, deed === name ? `${who} ${noun}` : noun.replace('person', who)])
    for (const [base, said] of bases) {
      const tones = Object.keys(TONES).sort(() => r() - 0.5).slice(0, TONES_EACH)
      for (const tone of tones) {
        const icon = find(tone ? `${base}-${tone}-skin-tone` : base)
        if (icon && !BROKEN.has(`${style} ${icon}`)) add(iconPixels(set, icon), { style, icon, noun: said, kind: 'person', ...(TONES[tone] ? { tone: TONES[tone] } : {}) })
      }
    }
  }
}

// --- people of styles that the base did not have
const HAIR = ['19141e', '734128', 'dcb969', 'e15c66', 'f5a05f', 'e1e1f5', '6bd9e9', 'fc909f', '9287ff', 'f4d150'], SKIN = ['ffd6c0', 'f1c3a5', 'd78774', 'c26450', 'b98e6a', '77311d', '5c3829']
const VIVID = ['dc3232', 'f08c28', 'fad746', '46aa50', '3c78dc', '8c50be', 'f596be', '50d2c8', '19191e', 'f5f5f5']
const enumOf = (style, key) => collection[style].schema.properties[key].items.enum
const avatar = (style, options) => pixels(createAvatar(collection[style], { seed: 'x', size: SIZE, ...options }).toString())
const DYLAN_HAIR = { plain: ['short'], wavy: [null], shortCurls: ['short', 'curly'], parting: ['short'], spiky: ['short', 'spiky'], roundBob: ['long'], longCurls: ['long', 'curly'], buns: ['short', 'bun'], bangs: ['long'], fluffy: [null], flatTop: ['short'], shaggy: [null] }
const DYLAN_MOUTH = { happy: 'smile', superHappy: 'laugh', sad: 'sad', angry: 'angry' }
const MORE = {
  dylan: [450, r => {
    const hair = pick(r, Object.keys(DYLAN_HAIR)), hairColor = pick(r, HAIR), skin = pick(r, SKIN), mood = pick(r, enumOf('dylan', 'mood')), beard = r() < 0.2 && DYLAN_HAIR[hair][0] === 'short'
    return [{ hair: [hair], hairColor: [hairColor], skinColor: [skin], mood: [mood], facialHairProbability: beard ? 100 : 0, backgroundColor: ['transparent'], scale: 122 },
      { hair: DYLAN_HAIR[hair][0], hairKind: DYLAN_HAIR[hair][1] ?? null, hairColor, skin, beard: beard ? 'beard' : null, mouth: DYLAN_MOUTH[mood] ?? null }]
  }],
  croodles: [400, r => {
    const skin = r() < 0.4 ? 'ffffff' : pick(r, SKIN), beard = r() < 0.2, o = Object.fromEntries(['eyes', 'face', 'mouth', 'nose', 'top'].map(k => [k, [pick(r, enumOf('croodles', k))]]))
    return [{ ...o, topColor: [pick(r, [...HAIR, ...VIVID])], baseColor: [skin], beardProbability: beard ? 100 : 0, beard: [pick(r, enumOf('croodles', 'beard'))], mustacheProbability: 0, scale: 118 }, { ...(skin === 'ffffff' ? {} : { skin }), beard: beard ? 'beard' : null }]
  }],
  croodlesNeutral: [50, r => [Object.fromEntries(['eyes', 'mouth', 'nose'].map(k => [k, [pick(r, enumOf('croodlesNeutral', k))]])), { noun: 'face' }]],
  funEmoji: [250, r => {
    const colour = pick(r, [...VIVID.slice(0, 8), 'fcbc34', 'd9915b']), eyes = pick(r, enumOf('funEmoji', 'eyes')), mouth = pick(r, enumOf('funEmoji', 'mouth'))
    return [{ eyes: [eyes], mouth: [mouth], backgroundColor: [colour], radius: pick(r, [50, 50, 20]) }, { noun: 'face', colour, glasses: ['glasses', 'shades'].includes(eyes) ? 'glasses' : null, mouth: { sad: 'sad', wideSmile: 'laugh', smileTeeth: 'smile', lilSmile: 'smile', smileLol: 'laugh', pissed: 'angry' }[mouth] ?? null }]
  }],
  thumbs: [200, r => {
    const colour = pick(r, VIVID.slice(0, 8)), ink = pick(r, ['000000', 'ffffff'])
    return [{ eyes: [pick(r, enumOf('thumbs', 'eyes'))], face: [pick(r, enumOf('thumbs', 'face'))], mouth: [pick(r, enumOf('thumbs', 'mouth'))], shapeColor: [colour], eyesColor: [ink], mouthColor: [ink], backgroundColor: ['transparent'] }, { noun: 'thumb', colour }]
  }],
  // --- and of the styles it has, with hair or beards that no person of `characters` and `concepts` has
  micah: [350, r => {
    const hair = pick(r, ['dougFunny', 'mrClean']), hairColor = pick(r, HAIR), skin = pick(r, SKIN), shirt = pick(r, enumOf('micah', 'shirt')), clothColor = pick(r, VIVID), glasses = r() < 0.3, beard = r() < 0.3 && hair === 'mrClean', mouth = pick(r, enumOf('micah', 'mouth'))
    return [{ hair: [hair], hairColor: [hairColor], baseColor: [skin], shirt: [shirt], shirtColor: [clothColor], glassesProbability: glasses ? 100 : 0, glassesColor: ['000000'], facialHairProbability: beard ? 100 : 0, facialHair: [pick(r, ['beard', 'scruff'])], facialHairColor: [hairColor], earringsProbability: r() < 0.3 ? 100 : 0, mouth: [mouth], eyes: [pick(r, enumOf('micah', 'eyes'))], nose: [pick(r, enumOf('micah', 'nose'))], scale: 108, translateY: 2 },
      { hairKind: hair === 'mrClean' ? 'bald' : null, skin, glasses: glasses ? 'glasses' : null, beard: beard ? 'beard' : null, cloth: 'shirt', clothColor, mouth }]
  }],
  personas: [450, r => {
    const hair = pick(r, ['sideShave', 'curlyBun', 'buzzcut', 'bobBangs', 'balding', 'bunUndercut', 'fade', 'shortComboverChops']), hairColor = pick(r, HAIR), skin = pick(r, SKIN), clothColor = pick(r, VIVID), eyes = pick(r, enumOf('personas', 'eyes')), mouth = pick(r, enumOf('personas', 'mouth')), beard = r() < 0.25 && !['bobBangs', 'curlyBun', 'sideShave'].includes(hair)
    return [{ hair: [hair], hairColor: [hairColor], skinColor: [skin], clothingColor: [clothColor], body: [pick(r, enumOf('personas', 'body'))], eyes: [eyes], mouth: [mouth], nose: [pick(r, enumOf('personas', 'nose'))], facialHairProbability: beard ? 100 : 0, facialHair: [pick(r, ['beardMustache', 'goatee', 'walrus'])], scale: 120, translateY: 6 },
      { hair: { bobBangs: 'long', buzzcut: 'short', fade: 'short', shortComboverChops: 'short' }[hair] ?? null, hairKind: { curlyBun: 'bun', bunUndercut: 'bun' }[hair] ?? null, hairColor, skin, glasses: ['glasses', 'sunglasses'].includes(eyes) ? 'glasses' : null, beard: beard ? 'beard' : null, cloth: 'shirt', clothColor, mouth }]
  }],
  toonHead: [300, r => {
    const hair = pick(r, enumOf('toonHead', 'hair')), hairColor = pick(r, ['6bd9e9', 'fc909f', '9287ff', 'e1e1f5', 'e15c66', 'f5a05f']), skin = pick(r, SKIN), cloth = pick(r, enumOf('toonHead', 'clothes')), clothColor = pick(r, VIVID), mouth = pick(r, enumOf('toonHead', 'mouth'))
    const rear = r() < 0.5 ? pick(r, ['longStraight', 'longWavy', 'shoulderHigh']) : null, beard = !rear && hair !== 'bun' && r() < 0.4
    return [{ hair: [hair], hairColor: [hairColor], rearHairProbability: rear ? 100 : 0, ...(rear ? { rearHair: [rear] } : {}), skinColor: [skin], clothes: [cloth], clothesColor: [clothColor], beardProbability: beard ? 100 : 0, beard: [pick(r, ['chin', 'chinMoustache', 'longBeard'])], mouth: [mouth], eyes: [pick(r, enumOf('toonHead', 'eyes'))], scale: 122, translateY: 8 },
      { hair: rear ? 'long' : 'short', hairKind: { spiky: 'spiky', bun: 'bun' }[hair] ?? null, hairColor, skin, beard: beard ? 'beard' : null, cloth: { turtleNeck: 'sweater', openJacket: 'jacket', dress: 'dress' }[cloth] ?? 'shirt', clothColor, mouth }]
  }],
}
for (const [style, [count, someone]] of Object.entries(MORE)) {
  const r = random(`wider/${style}`)
  for (let i = 0; i < count; i++) { const [options, label] = someone(r); add(avatar(style, options), { style, kind: 'avatar', ...label }) }
}
write(OUT, 'wider', rows)
