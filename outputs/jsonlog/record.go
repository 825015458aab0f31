package jsonlog

import (
	"net/netip"
	"strconv"
	"time"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/parsers/logline"
)

// Records are put together by hand, since reflection would cost more than all
// else that happens to a probe. Whatever is neither constant nor a number nor
// an address goes through appendText.

// The constant parts of a record.
const (
	provider = `,"module":"portsnare","provider":"portsnare"`
	ecs      = `,"ecs":{"version":"8.17.0"}`

	// threat is the scan in the terms of MITRE ATT&CK: active scanning of
	// address blocks.
	threat = `,"threat":{"framework":"MITRE ATT&CK","tactic":{"id":["TA0043"],"name":["Reconnaissance"]},"technique":{"id":["T1595.001"]}}`
)

// appendRecord appends the record of ev with its newline. It stays below 8 kB,
// where log daemons begin to cut.
func (w *Writer) appendRecord(dst []byte, ev *detector.Event) []byte {
	dst = append(dst, `{"@timestamp":"`...)
	dst = w.stamps.Append(dst, ev.At)
	dst = append(dst, '"')
	dst = w.appendEvent(dst, ev)
	if ev.IsProbe() {
		dst = w.appendProbe(dst, ev)
	} else {
		dst = w.appendDaemonEvent(dst, ev)
	}
	return append(dst, '}', '\n')
}

func (w *Writer) appendEvent(dst []byte, ev *detector.Event) []byte {
	f := factsOf(ev)
	dst = append(dst, `,"event":{"kind":"`...)
	dst = append(dst, f.kind...)
	dst = append(dst, `","category":[`...)
	dst = append(dst, f.category...)
	dst = append(dst, `],"type":["`...)
	dst = append(dst, f.eventType...)
	dst = append(dst, `"],"action":"`...)
	dst = append(dst, f.action...)
	dst = append(dst, `","outcome":"`...)
	dst = append(dst, f.outcome...)
	dst = append(dst, `","id":"`...)
	dst = append(dst, w.bootID...)
	dst = append(dst, '-')
	dst = strconv.AppendUint(dst, ev.Sequence, 10)
	dst = append(dst, `","sequence":`...)
	dst = strconv.AppendUint(dst, ev.Sequence, 10)
	dst = append(dst, `,"severity":`...)
	dst = append(dst, f.severity...)
	dst = append(dst, `,"dataset":"`...)
	dst = append(dst, f.dataset...)
	dst = append(dst, '"')
	dst = append(dst, provider...)
	if ev.Reason != "" {
		dst = append(dst, `,"reason":"`...)
		dst = appendText(dst, ev.Reason)
		dst = append(dst, '"')
	}
	return append(dst, '}')
}

// appendProbe appends what a record tells of a probe, from the source on.
func (w *Writer) appendProbe(dst []byte, ev *detector.Event) []byte {
	p := &ev.Probe
	dst = append(dst, `,"source":`...)
	dst, source := appendEndpoint(dst, p.Source, ev.Host)
	dst = append(dst, `,"destination":`...)
	dst, target := appendEndpoint(dst, p.Target, "")
	dst = appendNetwork(dst, p)

	dst = append(dst, w.daemon...)
	if p.Interface != "" {
		dst = append(dst, `,"ingress":{"interface":{"name":"`...)
		dst = appendText(dst, p.Interface)
		dst = append(dst, `"}}`...)
	}
	dst = append(dst, '}')
	dst = append(dst, w.daemonHost...)

	dst = append(dst, `,"rule":{"id":"`...)
	dst = append(dst, ruleID(p.Technique)...)
	dst = append(dst, `","name":"`...)
	dst = append(dst, logline.TypeText(p.Technique)...)
	dst = append(dst, `","category":"Detection of a Network Scan","ruleset":"portsnare"}`...)
	dst = append(dst, threat...)
	dst = append(dst, `,"related":{"ip":["`...)
	dst = append(dst, source...)
	dst = append(dst, `","`...)
	dst = append(dst, target...)
	dst = append(dst, `"]},"message":"`...)
	dst = logline.AppendScan(dst, ev) // holds nothing that JSON escapes
	dst = append(dst, '"')
	dst = append(dst, ecs...)

	dst = appendSchema(dst)
	dst = append(dst, `,"flags":{"ignored":"`...)
	dst = append(dst, ev.Ignored.String()...)
	dst = append(dst, `","triggered":"`...)
	dst = append(dst, ev.Triggered.String()...)
	dst = append(dst, `","noblock":"`...)
	dst = append(dst, ev.NoBlock.String()...)
	dst = append(dst, `","blocked":"`...)
	dst = append(dst, ev.Blocked.String()...)
	dst = append(dst, `"},"ip_options":"`...)
	dst = append(dst, logline.OptionsText(p.IPOptions)...)
	dst = append(dst, '"')
	if ev.Held {
		dst = append(dst, `,"held":true`...)
	}
	if len(ev.Acts) > 0 {
		dst = appendActs(dst, ev.Acts)
	}
	return append(dst, '}')
}

// appendActs appends what was done about a probe.
func appendActs(dst []byte, acts []detector.Act) []byte {
	dst = append(dst, `,"acts":[`...)
	for i := range acts {
		act := &acts[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, `{"kind":"`...)
		dst = append(dst, actKind(act.Kind)...)
		dst = append(dst, `","text":"`...)
		dst = appendText(dst, act.Text)
		dst = append(dst, `","outcome":"`...)
		if act.Err == nil {
			dst = append(dst, `success"}`...)
			continue
		}
		dst = append(dst, `failure","error":"`...)
		dst = appendText(dst, act.Err.Error())
		dst = append(dst, `"}`...)
	}
	return append(dst, ']')
}

func actKind(kind detector.ActKind) string {
	switch kind {
	case detector.ActRoute:
		return "route"
	case detector.ActHostsDeny:
		return "hosts-deny"
	}
	return "command"
}

// appendEndpoint appends an address with its port and, unless it is empty, its
// name, and returns the text of the address, too. A zone means nothing to another
// host and is left out.
func appendEndpoint(dst []byte, ap netip.AddrPort, name string) (record, address []byte) {
	dst = append(dst, `{"ip":"`...)
	start := len(dst)
	dst = ap.Addr().Unmap().WithZone("").AppendTo(dst)
	address = dst[start:]
	dst = append(dst, `","port":`...)
	dst = strconv.AppendUint(dst, uint64(ap.Port()), 10)
	if name != "" {
		dst = append(dst, `,"domain":"`...)
		dst = appendText(dst, name)
		dst = append(dst, '"')
	}
	return append(dst, '}'), address
}

func appendNetwork(dst []byte, p *detector.Probe) []byte {
	dst = append(dst, `,"network":{`...)
	switch p.Proto {
	case detector.TCP:
		dst = append(dst, `"transport":"tcp",`...)
	case detector.UDP:
		dst = append(dst, `"transport":"udp",`...)
	}
	family := "ipv6"
	if p.Source.Addr().Unmap().Is4() {
		family = "ipv4"
	}
	dst = append(dst, `"type":"`...)
	dst = append(dst, family...)
	dst = append(dst, `","iana_number":"`...)
	dst = strconv.AppendUint(dst, uint64(p.Proto), 10)
	return append(dst, `","direction":"ingress"}`...)
}

// ruleID names what was seen for rules in other programs; unlike PortSentry's
// words for it, it holds no blanks.
func ruleID(t detector.Technique) string {
	switch t {
	case detector.TechniqueConnect:
		return "connect"
	case detector.TechniqueSYN:
		return "tcp-syn"
	case detector.TechniqueFIN:
		return "tcp-fin"
	case detector.TechniqueNULL:
		return "tcp-null"
	case detector.TechniqueXMAS:
		return "tcp-xmas"
	case detector.TechniqueUDP:
		return "udp"
	}
	return "tcp-odd-flags"
}

// appendDaemonEvent appends what a record tells of the daemon itself.
func (w *Writer) appendDaemonEvent(dst []byte, ev *detector.Event) []byte {
	if port := ev.Probe.Target.Port(); port != 0 {
		dst = append(dst, `,"destination":{"port":`...)
		dst = strconv.AppendUint(dst, uint64(port), 10)
		dst = append(dst, '}')
	}
	dst = append(dst, w.daemon...)
	dst = append(dst, '}')
	dst = append(dst, w.daemonHost...)
	dst = append(dst, `,"message":"`...)
	dst = append(dst, factsOf(ev).message...)
	if ev.Action == detector.PacketsLost {
		dst = strconv.AppendUint(dst, ev.Lost, 10)
	}
	dst = append(dst, '"')
	dst = append(dst, ecs...)
	dst = appendSchema(dst)
	if ev.Action == detector.PacketsLost {
		dst = append(dst, `,"lost":`...)
		dst = strconv.AppendUint(dst, ev.Lost, 10)
	}
	if ev.Ban != nil {
		dst = appendBan(dst, ev.Ban)
	}
	return append(dst, '}')
}

// appendBan appends what is known of a ban.
func appendBan(dst []byte, ban *detector.Ban) []byte {
	dst = append(dst, `,"ban":{"source":"`...)
	dst = ban.Source.AppendTo(dst)
	dst = append(dst, `","origin":"`...)
	dst = appendText(dst, ban.Origin)
	dst = append(dst, `","reason":"`...)
	dst = appendText(dst, ban.Reason)
	dst = append(dst, '"')
	if !ban.Until.IsZero() {
		dst = append(dst, `,"until":"`...)
		dst = ban.Until.UTC().AppendFormat(dst, time.RFC3339)
		dst = append(dst, '"')
	}
	return append(dst, '}')
}

// appendSchema opens the object of our own fields.
func appendSchema(dst []byte) []byte {
	dst = append(dst, `,"portsnare":{"schema":`...)
	return strconv.AppendInt(dst, schema, 10)
}
