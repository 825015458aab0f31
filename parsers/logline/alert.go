package logline

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/portsnare/portsnare/detector"
)

// An Alert is what the lines say in which PortSentry 1.2 reports one probe. It
// may be compared with ==.
type Alert struct {
	Source netip.Addr // who probed, without a zone
	// Host is the resolved name of the source, which its owner chose: never
	// take an address from it. Empty: the lines repeat the address.
	Host      string
	Proto     detector.Proto
	Port      uint16 // that was tried
	Technique detector.Technique
	Flags     detector.TCPFlags // with TechniqueOddFlags, of shownFlags; else zero

	// Each of these has a line of its own behind the first.
	IPOptions bool // the packet had IP options
	NotBanned bool // the policy bans nobody for this
}

const alertIntro = "attackalert: "

// The types that PortSentry 1.2 spells otherwise than PortSentry 2.
const (
	nullAlert = " TCP NULL scan" // log readers know the line by its two blanks
	udpAlert  = "UDP scan"
)

// alertOf returns what the lines for ev say. The event must tell of a probe.
func alertOf(ev *detector.Event) Alert {
	s := scanOf(ev)
	a := Alert{
		Source:    s.Source,
		Proto:     s.Proto,
		Port:      s.Port,
		Technique: s.Technique,
		Flags:     s.Flags,
		IPOptions: s.IPOptions == detector.True,
		NotBanned: s.NoBlock == detector.True,
	}
	// PortSentry 1.2 knows no more flags than it shows.
	if a.Technique == detector.TechniqueOddFlags && a.Flags == 0 {
		a.Technique = detector.TechniqueNULL
	}
	return a
}

// AppendAlert appends the lines for ev, each with a newline, to dst. The event
// must tell of a probe. It allocates nothing but room in dst.
func AppendAlert(dst []byte, ev *detector.Event) []byte {
	a := alertOf(ev)
	return a.Append(dst)
}

// Append appends one to three lines, each with a newline, to dst.
func (a *Alert) Append(dst []byte) []byte {
	dst = append(dst, alertIntro...)
	dst = a.appendType(dst)
	dst = append(dst, " from host: "...)
	dst = a.appendFromTo(dst)
	dst = append(dst, '\n')
	if a.IPOptions {
		dst = append(dst, alertIntro+"Packet from host: "...)
		dst = a.appendFromTo(dst)
		dst = append(dst, " has IP options set (detection avoidance technique).\n"...)
	}
	if a.NotBanned {
		dst = append(dst, alertIntro+"Ignoring "...)
		dst = append(dst, a.Proto.String()...)
		dst = append(dst, " response per configuration file setting.\n"...)
	}
	return dst
}

func (a *Alert) appendType(dst []byte) []byte {
	switch a.Technique {
	case detector.TechniqueNULL:
		return append(dst, nullAlert...)
	case detector.TechniqueUDP:
		return append(dst, udpAlert...)
	}
	return appendType(dst, a.Technique, a.Flags)
}

// appendFromTo appends the source and what it tried.
func (a *Alert) appendFromTo(dst []byte) []byte {
	dst = appendHostAndSource(dst, a.Host, a.Source)
	dst = append(dst, " to "...)
	dst = append(dst, a.Proto.String()...)
	dst = append(dst, " port: "...)
	return strconv.AppendUint(dst, uint64(a.Port), 10)
}

// ParseAlert reads the lines about one probe, without syslog prefix and each
// with its newline. It takes exactly what [Alert.Append] writes for ports from 1 on.
func ParseAlert(lines string) (Alert, error) {
	r := reader{what: "alert", rest: lines}
	kind := field(&r, alertIntro, " from host: ", parseAlertType)
	host := field(&r, "", "/", parseHost)
	a := Alert{Technique: kind.technique, Flags: kind.flags}
	a.Source = field(&r, "", " to ", parseSource)
	a.Proto = field(&r, "", " port: ", parseProto)
	a.Port = field(&r, "", "\n", parsePort)
	if r.err != nil {
		return Alert{}, r.err
	}
	if !plausible(a.Technique, a.Proto) {
		return Alert{}, fmt.Errorf("alert: type %q with protocol %v", TypeText(a.Technique), a.Proto)
	}
	if host != a.Source.String() {
		a.Host = host
	}
	// What may follow repeats the first line, so it is right if we would write
	// the same.
	a.IPOptions = strings.Contains(r.rest, " has IP options set ")
	a.NotBanned = strings.Contains(r.rest, " response per configuration file setting.")
	if string(a.Append(nil)) != lines {
		return Alert{}, fmt.Errorf("alert: bad lines after the first: %q", r.rest)
	}
	return a, nil
}

func parseAlertType(text string) (kind, bool) {
	switch text {
	case nullAlert:
		return kind{technique: detector.TechniqueNULL}, true
	case udpAlert:
		return kind{technique: detector.TechniqueUDP}, true
	case TypeText(detector.TechniqueNULL), TypeText(detector.TechniqueUDP):
		return kind{}, false
	}
	return parseType(text)
}
