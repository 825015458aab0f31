package runcmd

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// ErrNoTarget says that a template which is to keep a source out does not name
// the source.
var ErrNoTarget = errors.New("no " + target + " in it, so it cannot tell whom to keep out")

const target = "$TARGET$"

// Tokens are the facts about a probe that templates may name. Their types are
// the whole defence of the shell: an address, a number and a word of ours have
// no byte that it takes for more than text, whatever a stranger sends.
type Tokens struct {
	Source netip.Addr // $TARGET$; without its zone, and an IPv4-mapped one as IPv4
	Port   uint16     // $PORT$, which was probed
	Mode   Mode       // $MODE$
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
	if !t.Source.IsValid() {
		return "", errors.New("no source to put in the place of " + target)
	}
	return strings.NewReplacer(
		target, t.Source.WithZone("").Unmap().String(),
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
