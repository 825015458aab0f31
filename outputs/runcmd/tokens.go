package runcmd

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/portsnare/portsnare/detector"
)

// ErrNoTarget says that a template which is to keep a source out does not name
// the source.
var ErrNoTarget = errors.New("no " + target + " in it, so it cannot tell whom to keep out")

const target = "$TARGET$"

// Tokens are the facts about a probe that templates may name. Their types are
// the whole defence of the shell: an address, a number and a word of ours have
// no byte that it takes for more than text, whatever a stranger sends.
type Tokens struct {
	Source netip.Prefix // $TARGET$: an address if it is a single one, else "2001:db8::/64"
	Port   uint16       // $PORT$, which was probed; 0 if the ban has no probe
	Mode   Mode         // $MODE$
}

// TokensOf returns the tokens of a ban. Its mode is the given one or, if that is
// [ModeUnknown], PortSentry 2's, which its probe tells.
func TokensOf(b *detector.Ban, mode Mode) (Tokens, error) {
	source, err := Source(b.Source)
	if err != nil {
		return Tokens{}, err
	}
	if mode == ModeUnknown && b.Probe.Source.IsValid() {
		mode = ModeStealth
		if b.Probe.Technique == detector.TechniqueConnect {
			mode = ModeConnect
		}
	}
	return Tokens{Source: source, Port: b.Probe.Target.Port(), Mode: mode}, nil
}

// Source returns the source of a ban in the one form that it has: without host
// bits, and as IPv4 if it is IPv4-mapped. It refuses what nobody can mean to ban.
func Source(p netip.Prefix) (netip.Prefix, error) {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	switch p = p.Masked(); {
	case !p.IsValid():
		return p, errNoSource
	case p.Bits() == 0:
		return p, errEverybody
	}
	return p, nil
}

var (
	errNoSource  = errors.New("a ban without a source")
	errEverybody = errors.New("a ban of all addresses")
)

// word returns what stands for $TARGET$.
func word(source netip.Prefix) string {
	if source.IsSingleIP() {
		return source.Addr().String()
	}
	return source.String()
}

// A Mode is the word for $MODE$: how the probe was caught.
type Mode uint8

// The modes: PortSentry 2 has the first two words, 1.2 the other six.
const (
	ModeUnknown Mode = iota
	ModeStealth
	ModeConnect
	ModeTCP
	ModeSTCP
	ModeATCP
	ModeUDP
	ModeSUDP
	ModeAUDP
)

var modeWords = [...]string{
	ModeUnknown: "unknown",
	ModeStealth: "stealth",
	ModeConnect: "connect",
	ModeTCP:     "tcp",
	ModeSTCP:    "stcp",
	ModeATCP:    "atcp",
	ModeUDP:     "udp",
	ModeSUDP:    "sudp",
	ModeAUDP:    "audp",
}

// String returns the word, such as "stealth".
func (m Mode) String() string {
	if int(m) < len(modeWords) {
		return modeWords[m]
	}
	return modeWords[ModeUnknown]
}

// ParseMode returns the mode whose word is given.
func ParseMode(word string) (Mode, error) {
	for m, w := range modeWords {
		if w == word {
			return Mode(m), nil
		}
	}
	return ModeUnknown, fmt.Errorf("%q is no mode", word)
}

// Expand replaces every $TARGET$, $PORT$ and $MODE$ in template, as PortSentry
// does. It fails if t has no source.
func Expand(template string, t Tokens) (string, error) {
	source, err := Source(t.Source)
	if err != nil {
		return "", err
	}
	return strings.NewReplacer(
		target, word(source),
		"$PORT$", strconv.Itoa(int(t.Port)),
		"$MODE$", t.Mode.String(),
	).Replace(template), nil
}

// ExpandBan is [Expand] for a template that keeps a source out, such as
// KILL_ROUTE. It returns [ErrNoTarget] if the template does not name the source.
func ExpandBan(template string, t Tokens) (string, error) {
	if !strings.Contains(template, target) {
		return "", ErrNoTarget
	}
	return Expand(template, t)
}
