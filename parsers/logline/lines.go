package logline

import (
	"errors"
	"net/netip"
	"strconv"

	"github.com/portsnare/portsnare/detector"
)

// This file has the lines about one event, in the order in which PortSentry
// writes them. A line is its [Severity], its text and a newline.

// Severity grades a line. Its value is the digit of the severity in syslog (RFC
// 5424, section 6.2.1) that PortSentry 2 gives such lines.
type Severity byte

// The severities. PortSentry 1.2 knows Normal alone.
const (
	Error   Severity = '3'
	Normal  Severity = '5'
	Verbose Severity = '6' // for those who ask for it
	Debug   Severity = '7'
)

// maxLine is the most bytes of a line's text; PortSentry 2 has no room for more.
// What is longer ends in cutMark.
const (
	maxLine = 1023
	cutMark = "..."
)

// AppendLine appends one line with its severity and its newline. Line breaks and
// other control characters in text, which an administrator may have written into
// a command, become blanks.
func AppendLine(dst []byte, s Severity, text string) []byte {
	dst = append(dst, byte(s))
	start := len(dst)
	return endLine(append(dst, text...), start)
}

// endLine ends the line whose text begins at start.
func endLine(dst []byte, start int) []byte {
	if len(dst)-start > maxLine {
		dst = append(dst[:start+maxLine-len(cutMark)], cutMark...)
	}
	for i, c := range dst[start:] {
		if c < ' ' || c == 0x7f {
			dst[start+i] = ' '
		}
	}
	return append(dst, '\n')
}

// PortSentry2 says which lines PortSentry 2 has about an event. The zero value is
// PortSentry without options.
type PortSentry2 struct {
	Verbose, Debug bool   // -v and -d
	IgnoreFile     string // which a verbose line names
}

// AppendLines appends the lines about ev: of a probe what came of it, and last
// the Scan line. It allocates nothing but room in dst, except about bans.
func (f PortSentry2) AppendLines(dst []byte, ev *detector.Event) []byte {
	switch {
	case ev.Action == detector.ServiceReached:
		return appendServiceReached(dst, ev)
	case ev.Action == detector.AcceptFailed:
		return appendAcceptFailed(dst, ev, " ("+ev.Reason+")")
	case !ev.IsProbe():
		return dst
	}
	dst = f.appendOutcome(dst, ev)
	dst = append(dst, byte(Normal))
	return append(AppendScan(dst, ev), '\n')
}

// appendOutcome appends the lines before the Scan line.
func (f PortSentry2) appendOutcome(dst []byte, ev *detector.Event) []byte {
	switch {
	case ev.Ignored == detector.True && ev.Triggered == detector.Unset:
		if !f.Verbose {
			return dst
		}
		return AppendLine(dst, Verbose, "Host: "+sourceText(ev)+" found in ignore file "+f.IgnoreFile+", aborting actions")
	case ev.Ignored == detector.True:
		if !f.Debug {
			return dst
		}
		return AppendLine(dst, Debug, "debug: Source address "+sourceText(ev)+" same as destination address "+sourceText(ev)+", skipping")
	case ev.Held:
		return appendHeld(dst, ev)
	case ev.NoBlock == detector.False:
		return appendBan(dst, ev, &banLines2)
	}
	return dst
}

// PortSentry1 says which lines PortSentry 1.2 has about an event.
type PortSentry1 struct {
	Advanced bool // of mode atcp, whose failures are spelt otherwise than those of stcp
}

// AppendLines appends the lines about ev: first who probed, then what came of it.
// PortSentry 1.2 says nothing of sources that are ignored or below the trigger.
// It allocates nothing but room in dst, except about bans.
func (f PortSentry1) AppendLines(dst []byte, ev *detector.Event) []byte {
	if ev.Action == detector.AcceptFailed {
		return appendAcceptFailed(dst, ev, " (accept failed)")
	}
	if !Recordable(ev) {
		return dst
	}
	a := alertOf(ev)
	dst = append(dst, byte(Normal))
	dst = append(a.Append(dst), '\n')
	if ev.Probe.IPOptions == detector.True {
		dst = append(dst, byte(Normal))
		dst = append(a.appendOptions(dst), '\n')
	}
	connect := a.Technique == detector.TechniqueConnect
	switch {
	case ev.Held && connect:
		dst = AppendLine(dst, Normal, "attackalert: Host: "+sourceText(ev)+" is already blocked. Ignoring")
	case ev.Held:
		dst = appendHeld(dst, ev)
	case ev.NoBlock == detector.True:
		dst = append(dst, byte(Normal))
		dst = append(dst, "attackalert: Ignoring "...)
		dst = append(dst, a.Proto.String()...)
		dst = append(dst, " response per configuration file setting.\n"...)
	default:
		dst = appendBan(dst, ev, f.banLines(a.Proto, connect))
	}
	return dst
}

// Recordable reports whether PortSentry 1.2 has lines for ev: they have no field
// to say that nothing should come of the probe.
func Recordable(ev *detector.Event) bool {
	return ev.IsProbe() && ev.Triggered == detector.True && ev.Ignored == detector.False
}

// banLines are what differs between the generations in the lines about a ban.
type banLines struct {
	grade       Severity // of what went wrong
	prefix      string   // of complaints about the configuration
	failed      string   // before the source that was not banned,
	host        bool     // whose name is told as well,
	after       string   // and after it
	tellPresent bool     // whether a line in hosts.deny that was there is told of as such
}

var banLines2 = banLines{grade: Error, failed: "attackalert: Error during target dispose ", host: true, after: "!", tellPresent: true}

// banLines returns those of a mode of PortSentry 1.2.
func (f PortSentry1) banLines(proto detector.Proto, connect bool) *banLines {
	b := banLines{grade: Normal, prefix: "adminalert: ", failed: "attackalert: ERROR: Could not block host ", host: true, after: "!!"}
	switch {
	case connect:
		b.host, b.after = false, " !!"
	case proto == detector.TCP && !f.Advanced:
		b.after = " !!"
	}
	return &b
}

// appendBan appends the lines about a ban that was asked for.
func appendBan(dst []byte, ev *detector.Event, b *banLines) []byte {
	for i := range ev.Acts {
		dst = b.appendAct(dst, sourceText(ev), &ev.Acts[i])
	}
	switch {
	case ev.Blocked == detector.True:
		return dst
	case ev.Reason != "": // never to be banned, or too many are
		return AppendLine(dst, b.grade, "attackalert: Host "+sourceText(ev)+" is not blocked: "+ev.Reason)
	}
	dst = append(dst, byte(b.grade))
	start := len(dst)
	dst = append(dst, b.failed...)
	if b.host {
		dst = appendHostAndSource(dst, ev.Host, sourceOf(ev))
	} else {
		dst = sourceOf(ev).AppendTo(dst)
	}
	return endLine(append(dst, b.after...), start)
}

// appendAct appends the line about one act against source.
func (b *banLines) appendAct(dst []byte, source string, act *detector.Act) []byte {
	switch {
	case errors.Is(act.Err, detector.ErrNoTarget):
		return AppendLine(dst, b.grade, b.prefix+"No target variable specified in "+actKey(act.Kind)+" option. Skipping.")
	case act.Err != nil && act.Kind == detector.ActHostsDeny:
		return AppendLine(dst, b.grade, b.prefix+act.Err.Error())
	case act.Err != nil: // first the cause: the command may be cut
		return AppendLine(dst, b.grade, b.prefix+actKey(act.Kind)+": "+act.Err.Error()+`: "`+act.Text+`"`)
	case act.Present && b.tellPresent:
		return AppendLine(dst, Normal, "Host "+source+" already in hosts.deny file, skipping.")
	}
	switch act.Kind {
	case detector.ActRoute:
		return AppendLine(dst, Normal, "attackalert: Host "+source+` has been blocked via dropped route using command: "`+act.Text+`"`)
	case detector.ActHostsDeny:
		return AppendLine(dst, Normal, "attackalert: Host "+source+` has been blocked via wrappers with string: "`+act.Text+`"`)
	}
	return AppendLine(dst, Normal, "attackalert: External command run for host: "+source+` using command: "`+act.Text+`"`)
}

// actKey returns the key of PortSentry's that configures a kind of act.
func actKey(kind detector.ActKind) string {
	switch kind {
	case detector.ActRoute:
		return "KILL_ROUTE"
	case detector.ActHostsDeny:
		return "KILL_HOSTS_DENY"
	}
	return "KILL_RUN_CMD"
}

// appendHeld appends the line about a source that was banned before.
func appendHeld(dst []byte, ev *detector.Event) []byte {
	dst = append(dst, byte(Normal))
	dst = append(dst, "attackalert: Host: "...)
	dst = appendHostAndSource(dst, ev.Host, sourceOf(ev))
	return append(dst, " is already blocked Ignoring\n"...)
}

func appendServiceReached(dst []byte, ev *detector.Event) []byte {
	dst = append(dst, byte(Normal))
	dst = append(dst, "Ignoring packet from "...)
	dst = sourceOf(ev).AppendTo(dst)
	dst = append(dst, " to destination port "...)
	dst = strconv.AppendUint(dst, uint64(ev.Probe.Target.Port()), 10)
	return append(dst, ", a service is running\n"...)
}

func appendAcceptFailed(dst []byte, ev *detector.Event, why string) []byte {
	port := strconv.Itoa(int(ev.Probe.Target.Port()))
	return AppendLine(dst, Normal, "attackalert: Possible stealth scan from unknown host to TCP port: "+port+why)
}

// sourceOf returns the source as lines name it.
func sourceOf(ev *detector.Event) netip.Addr { return ev.Probe.Source.Addr().Unmap().WithZone("") }

func sourceText(ev *detector.Event) string { return sourceOf(ev).String() }
