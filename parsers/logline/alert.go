package logline

import (
	"fmt"
	"net/netip"
	"strconv"

	"github.com/portsnare/portsnare/detector"
)

// An Alert is what the line says in which PortSentry 1.2 reports a probe. It may
// be compared with ==.
type Alert struct {
	Source netip.Addr // who probed, without a zone
	// Host is the resolved name of the source, which its owner chose: never
	// take an address from it. Empty: the line repeats the address.
	Host      string
	Proto     detector.Proto
	Port      uint16 // that was tried
	Technique detector.Technique
	Flags     detector.TCPFlags // with TechniqueOddFlags, of shownFlags; else zero
}

const alertIntro = "attackalert: "

// The types that PortSentry 1.2 spells otherwise than PortSentry 2.
const (
	nullAlert = " TCP NULL scan" // log readers know the line by its two blanks
	udpAlert  = "UDP scan"
)

// alertOf returns what the line for ev says. The event must tell of a probe.
func alertOf(ev *detector.Event) Alert {
	s := scanOf(ev)
	a := Alert{
		Source:    s.Source,
		Host:      s.Host,
		Proto:     s.Proto,
		Port:      s.Port,
		Technique: s.Technique,
		Flags:     s.Flags,
	}
	// PortSentry 1.2 knows no more flags than it shows.
	if a.Technique == detector.TechniqueOddFlags && a.Flags == 0 {
		a.Technique = detector.TechniqueNULL
	}
	return a
}

// Append appends the line, without a newline, to dst.
func (a *Alert) Append(dst []byte) []byte {
	dst = append(dst, alertIntro...)
	dst = a.appendType(dst)
	dst = append(dst, " from host: "...)
	return a.appendFromTo(dst)
}

// appendOptions appends the line that follows if the packet had IP options.
func (a *Alert) appendOptions(dst []byte) []byte {
	dst = append(dst, alertIntro+"Packet from host: "...)
	dst = a.appendFromTo(dst)
	return append(dst, " has IP options set (detection avoidance technique)."...)
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

// ParseAlert reads a line without syslog prefix or newline. It takes exactly
// what [Alert.Append] writes for ports from 1 on.
func ParseAlert(line string) (Alert, error) {
	r := reader{what: "alert", rest: line}
	kind := field(&r, alertIntro, " from host: ", parseAlertType)
	host := field(&r, "", "/", parseHost)
	a := Alert{Technique: kind.technique, Flags: kind.flags}
	a.Source = field(&r, "", " to ", parseSource)
	a.Proto = field(&r, "", " port: ", parseProto)
	a.Port = lastField(&r, parsePort)
	if r.err != nil {
		return Alert{}, r.err
	}
	if !plausible(a.Technique, a.Proto) {
		return Alert{}, fmt.Errorf("alert: type %q with protocol %v", TypeText(a.Technique), a.Proto)
	}
	if host != a.Source.String() {
		a.Host = host
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
