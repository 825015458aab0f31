package logline

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/portsnare/portsnare/detector"
)

// Parse reads a Scan line without time stamp, syslog prefix or newline. It
// takes exactly the lines that [Scan.Append] writes for ports from 1 on, so
// that a line which Parse accepts says what it seems to say.
func Parse(line string) (Scan, error) {
	var s Scan
	r := reader{what: "scan line", rest: line}
	s.Source = field(&r, "Scan from: [", "]", parseSource)
	host := field(&r, " (", ")", parseHost)
	s.Proto = field(&r, " protocol: [", "]", parseProto)
	s.Port = field(&r, " port: [", "]", parsePort)
	kind := field(&r, " type: [", "]", parseType)
	s.IPOptions = field(&r, " IP opts: [", "]", parseOptions)
	s.Ignored = field(&r, " ignored: [", "]", parseTri)
	s.Triggered = field(&r, " triggered: [", "]", parseTri)
	s.NoBlock = field(&r, " noblock: [", "]", parseTri)
	s.Blocked = field(&r, " blocked: [", "]", parseTri)
	if err := r.end(); err != nil {
		return Scan{}, err
	}
	s.Technique, s.Flags = kind.technique, kind.flags
	if !plausible(s.Technique, s.Proto) {
		return Scan{}, fmt.Errorf("scan line: type %q with protocol %v", TypeText(s.Technique), s.Proto)
	}
	if host != s.Source.String() {
		s.Host = host
	}
	return s, nil
}

// plausible reports whether the technique exists in the protocol.
func plausible(t detector.Technique, proto detector.Proto) bool {
	switch t {
	case detector.TechniqueConnect:
		return true
	case detector.TechniqueUDP:
		return proto == detector.UDP
	}
	return proto == detector.TCP
}

// A reader takes fields off the front of a line up to the first fault.
type reader struct {
	what string // is read, for errors
	rest string
	err  error
}

// end returns the first fault, which may be that the line goes on.
func (r *reader) end() error {
	if r.err == nil && r.rest != "" {
		r.err = fmt.Errorf("%s: text after its end: %q", r.what, r.rest)
	}
	return r.err
}

// field takes what stands between opening and closing.
func field[T any](r *reader, opening, closing string, parse func(string) (T, bool)) T {
	var zero T
	if r.err != nil {
		return zero
	}
	rest, opened := strings.CutPrefix(r.rest, opening)
	text, rest, closed := strings.Cut(rest, closing)
	if !opened || !closed {
		r.err = fmt.Errorf("%s: want %q and %q, not %q", r.what, opening, closing, r.rest)
		return zero
	}
	value, ok := parse(text)
	if !ok {
		r.err = fmt.Errorf("%s: bad value in %q", r.what, opening+text+closing)
		return zero
	}
	r.rest = rest
	return value
}

// lastField takes all that is left.
func lastField[T any](r *reader, parse func(string) (T, bool)) T {
	var zero T
	if r.err != nil {
		return zero
	}
	value, ok := parse(r.rest)
	if !ok {
		r.err = fmt.Errorf("%s: bad value in %q", r.what, r.rest)
		return zero
	}
	return value
}

func parseSource(text string) (netip.Addr, bool) {
	addr, err := netip.ParseAddr(text)
	ok := err == nil && addr.Zone() == "" && !addr.Is4In6() && addr.String() == text
	return addr, ok
}

func parseHost(text string) (string, bool) {
	for i := range len(text) {
		if !isHostByte(text[i]) {
			return "", false
		}
	}
	return text, text != "" && len(text) <= maxHost
}

func parseProto(text string) (detector.Proto, bool) {
	for _, p := range [...]detector.Proto{detector.TCP, detector.UDP} {
		if text == p.String() {
			return p, true
		}
	}
	return 0, false
}

func parsePort(text string) (uint16, bool) {
	port, err := strconv.ParseUint(text, 10, 16)
	ok := err == nil && text[0] != '0' // nor 0 itself: it is no port to watch
	return uint16(port), ok
}

// kind is what the type field says.
type kind struct {
	technique detector.Technique
	flags     detector.TCPFlags
}

func parseType(text string) (kind, bool) {
	for technique, known := range typeTexts {
		if known != "" && text == known {
			return kind{technique: detector.Technique(technique)}, true
		}
	}
	rest, ok := strings.CutPrefix(text, flagsIntro)
	if !ok {
		return kind{}, false
	}
	k := kind{technique: detector.TechniqueOddFlags}
	for _, f := range flagNames {
		if rest, ok = strings.CutPrefix(rest, " "+f.name+": "); !ok || rest == "" {
			return kind{}, false
		}
		switch rest[0] {
		case '1':
			k.flags |= f.flag
		case '0':
		default:
			return kind{}, false
		}
		rest = rest[1:]
	}
	return k, rest == ""
}

func parseOptions(text string) (detector.Tri, bool) { return parseWord(text, OptionsText) }

func parseTri(text string) (detector.Tri, bool) { return parseWord(text, detector.Tri.String) }

// parseWord returns the value that word spells as text.
func parseWord(text string, word func(detector.Tri) string) (detector.Tri, bool) {
	for _, t := range [...]detector.Tri{detector.Unset, detector.False, detector.True} {
		if text == word(t) {
			return t, true
		}
	}
	return detector.Unset, false
}
