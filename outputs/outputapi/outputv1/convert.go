package outputv1

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/portsnare/portsnare/detector"
)

// ErrUnknownAction says that a later version made the event. There is nothing
// to do about it but to leave it.
var ErrUnknownAction = errors.New("unknown action")

// FromEvent returns the message for an event. It keeps no reference into it.
func FromEvent(ev *detector.Event) *Event {
	m := &Event{
		At:        fromTime(ev.At),
		Sequence:  ev.Sequence,
		Action:    toWire(actions, ev.Action),
		Probe:     FromProbe(&ev.Probe),
		Ignored:   toWire(tris, ev.Ignored),
		Triggered: toWire(tris, ev.Triggered),
		NoBlock:   toWire(tris, ev.NoBlock),
		Blocked:   toWire(tris, ev.Blocked),
		Held:      ev.Held,
		Acts:      fromActs(ev.Acts),
		Host:      Text(ev.Host, maxHost),
		Lost:      ev.Lost,
		Reason:    Text(ev.Reason, maxText),
	}
	if ev.Ban != nil {
		m.Ban = FromBan(ev.Ban)
	}
	return m
}

// ToEvent returns the event of a message. The error is [ErrUnknownAction], or
// names the field that breaks the protocol.
func ToEvent(m *Event) (detector.Event, error) {
	ev, err := toEvent(m)
	if err != nil {
		return detector.Event{}, fmt.Errorf("event %d: %w", m.GetSequence(), err)
	}
	return ev, nil
}

func toEvent(m *Event) (detector.Event, error) {
	action, ok := fromWire[detector.Action](actions, m.GetAction())
	if !ok {
		return detector.Event{}, fmt.Errorf("%w %d", ErrUnknownAction, m.GetAction())
	}
	at, err := toTime("at", m.GetAt())
	if err != nil {
		return detector.Event{}, err
	}
	probe, err := ToProbe(m.GetProbe())
	if err != nil {
		return detector.Event{}, err
	}
	ev := detector.Event{
		At:        at,
		Sequence:  m.GetSequence(),
		Action:    action,
		Probe:     probe,
		Ignored:   toTri(m.GetIgnored()),
		Triggered: toTri(m.GetTriggered()),
		NoBlock:   toTri(m.GetNoBlock()),
		Blocked:   toTri(m.GetBlocked()),
		Held:      m.GetHeld(),
		Acts:      toActs(m.GetActs()),
		Host:      Text(m.GetHost(), maxHost),
		Lost:      m.GetLost(),
		Reason:    Text(m.GetReason(), maxText),
	}
	if m.GetBan() != nil {
		ban, err := ToBan(m.GetBan())
		if err != nil {
			return detector.Event{}, err
		}
		ev.Ban = &ban
	}
	return ev, nil
}

// FromBan returns the message for a ban.
func FromBan(b *detector.Ban) *Ban {
	m := &Ban{
		Until:    fromTime(b.Until),
		Evidence: toWire(evidences, b.Evidence),
		Reason:   Text(b.Reason, maxText),
		Origin:   Text(b.Origin, maxName),
		Probe:    FromProbe(&b.Probe),
	}
	if b.Source.IsValid() {
		m.Source = canonical(b.Source).String()
	}
	return m
}

// ToBan returns the ban of a message. Unknown evidence is the weakest. The error
// names the field that breaks the protocol.
func ToBan(m *Ban) (detector.Ban, error) {
	source, err := toPrefix(m.GetSource())
	if err != nil {
		return detector.Ban{}, fmt.Errorf("ban: %w", err)
	}
	until, err := toTime("until", m.GetUntil())
	if err != nil {
		return detector.Ban{}, fmt.Errorf("ban of %v: %w", source, err)
	}
	probe, err := ToProbe(m.GetProbe())
	if err != nil {
		return detector.Ban{}, fmt.Errorf("ban of %v: %w", source, err)
	}
	evidence, _ := fromWire[detector.Evidence](evidences, m.GetEvidence())
	return detector.Ban{
		Source:   source,
		Until:    until,
		Evidence: evidence,
		Reason:   Text(m.GetReason(), maxText),
		Origin:   Text(m.GetOrigin(), maxName),
		Probe:    probe,
	}, nil
}

// FromProbe returns the message for a probe, nil for the zero Probe.
func FromProbe(p *detector.Probe) *Probe {
	if *p == (detector.Probe{}) {
		return nil
	}
	return &Probe{
		At:            fromTime(p.At),
		SourceAddress: fromAddr(p.Source.Addr()),
		SourcePort:    uint32(p.Source.Port()),
		TargetAddress: fromAddr(p.Target.Addr()),
		TargetPort:    uint32(p.Target.Port()),
		Protocol:      uint32(p.Proto),
		Technique:     toWire(techniques, p.Technique),
		Header: &Header{
			TcpFlags: uint32(p.Header.Flags),
			Ttl:      uint32(p.Header.TTL),
			Window:   uint32(p.Header.Window),
			IpId:     uint32(p.Header.IPID),
			Sequence: p.Header.Sequence,
		},
		IpOptions: toWire(tris, p.IPOptions),
		Proof:     toWire(proofs, p.Proof),
		Interface: Text(p.Interface, maxName),
	}
}

// ToProbe returns the probe of a message, the zero Probe for nil. The error
// names the field that breaks the protocol.
func ToProbe(m *Probe) (detector.Probe, error) {
	if m == nil {
		return detector.Probe{}, nil
	}
	at, err := toTime("at", m.GetAt())
	if err != nil {
		return detector.Probe{}, fmt.Errorf("probe: %w", err)
	}
	source, err := toAddrPort("source", m.GetSourceAddress(), m.GetSourcePort())
	if err != nil {
		return detector.Probe{}, fmt.Errorf("probe: %w", err)
	}
	target, err := toAddrPort("target", m.GetTargetAddress(), m.GetTargetPort())
	if err != nil {
		return detector.Probe{}, fmt.Errorf("probe: %w", err)
	}
	header, err := toHeader(m.GetHeader())
	if err != nil {
		return detector.Probe{}, fmt.Errorf("probe: %w", err)
	}
	if m.GetProtocol() > math.MaxUint8 {
		return detector.Probe{}, fmt.Errorf("probe: protocol %d is above 255", m.GetProtocol())
	}
	technique, _ := fromWire[detector.Technique](techniques, m.GetTechnique())
	proof, _ := fromWire[detector.Proof](proofs, m.GetProof())
	return detector.Probe{
		At:        at,
		Source:    source,
		Target:    target,
		Proto:     detector.Proto(m.GetProtocol()),
		Technique: technique,
		Header:    header,
		IPOptions: toTri(m.GetIpOptions()),
		Proof:     proof,
		Interface: Text(m.GetInterface(), maxName),
	}, nil
}

func toHeader(m *Header) (detector.HeaderFacts, error) {
	switch {
	case m.GetTcpFlags() > math.MaxUint8:
		return detector.HeaderFacts{}, fmt.Errorf("TCP flags %d are above 255", m.GetTcpFlags())
	case m.GetTtl() > math.MaxUint8:
		return detector.HeaderFacts{}, fmt.Errorf("TTL %d is above 255", m.GetTtl())
	case m.GetWindow() > math.MaxUint16:
		return detector.HeaderFacts{}, fmt.Errorf("window %d is above 65535", m.GetWindow())
	case m.GetIpId() > math.MaxUint16:
		return detector.HeaderFacts{}, fmt.Errorf("IP ID %d is above 65535", m.GetIpId())
	}
	return detector.HeaderFacts{
		Flags:    detector.TCPFlags(m.GetTcpFlags()),
		TTL:      uint8(m.GetTtl()),
		Window:   uint16(m.GetWindow()),
		IPID:     uint16(m.GetIpId()),
		Sequence: m.GetSequence(),
	}, nil
}

// FromResult returns the message for what came of one ban.
func FromResult(err error, acts []detector.Act) *Result {
	return &Result{Error: ErrorText(err), Acts: fromActs(acts)}
}

// ToResult returns what came of one ban: the error is the module's, nil if the
// ban is in force.
func ToResult(m *Result) (acts []detector.Act, err error) {
	return toActs(m.GetActs()), ToError(m.GetError())
}

func fromActs(acts []detector.Act) []*Act {
	if len(acts) == 0 {
		return nil
	}
	messages := make([]*Act, 0, min(len(acts), maxActs))
	for i := range acts[:min(len(acts), maxActs)] {
		act := &acts[i]
		messages = append(messages, &Act{
			Kind:     toWire(actKinds, act.Kind),
			Text:     Text(act.Text, maxAct),
			Present:  act.Present,
			Error:    ErrorText(act.Err),
			NoTarget: errors.Is(act.Err, detector.ErrNoTarget),
		})
	}
	return messages
}

// toActs leaves out acts of a kind that a later version added: no reader knows
// what to say of them.
func toActs(messages []*Act) []detector.Act {
	var acts []detector.Act
	for _, m := range messages[:min(len(messages), maxActs)] {
		kind, ok := fromWire[detector.ActKind](actKinds, m.GetKind())
		if !ok {
			continue
		}
		acts = append(acts, detector.Act{
			Kind:    kind,
			Text:    Text(m.GetText(), maxAct),
			Present: m.GetPresent(),
			Err:     toActError(m),
		})
	}
	return acts
}

func toActError(m *Act) error {
	if m.GetNoTarget() {
		return detector.ErrNoTarget
	}
	return ToError(m.GetError())
}

func toTri(m Tri) detector.Tri {
	tri, _ := fromWire[detector.Tri](tris, m)
	return tri
}

// fromTime returns nil for the zero time and for one that no calendar has, such
// as a capture file may claim.
func fromTime(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	m := timestamppb.New(t)
	if !m.IsValid() {
		return nil
	}
	return m
}

func toTime(field string, m *timestamppb.Timestamp) (time.Time, error) {
	if m == nil {
		return time.Time{}, nil
	}
	if err := m.CheckValid(); err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", field, err)
	}
	return m.AsTime(), nil
}

func fromAddr(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	a = a.Unmap()
	return a.WithZone(Text(a.Zone(), maxZone)).String()
}

func toAddrPort(field, addr string, port uint32) (netip.AddrPort, error) {
	if port > math.MaxUint16 {
		return netip.AddrPort{}, fmt.Errorf("%s: port %d is above 65535", field, port)
	}
	if addr == "" {
		return netip.AddrPortFrom(netip.Addr{}, uint16(port)), nil
	}
	if len(addr) > maxName {
		return netip.AddrPort{}, fmt.Errorf("%s: address of %d bytes", field, len(addr))
	}
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s: %w", field, err)
	}
	if Text(addr, maxName) != addr {
		return netip.AddrPort{}, fmt.Errorf("%s: control characters in address %q", field, addr)
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(port)), nil
}

// canonical returns p without host bits, and as IPv4 if it is an IPv4-mapped
// network.
func canonical(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

func toPrefix(s string) (netip.Prefix, error) {
	if len(s) > maxName {
		return netip.Prefix{}, fmt.Errorf("source: prefix of %d bytes", len(s))
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("source: %w", err)
	}
	if c := canonical(p); c != p {
		return netip.Prefix{}, fmt.Errorf("source: %v is to be written %v", p, c)
	}
	return p, nil
}
