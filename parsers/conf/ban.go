package conf

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/portsnare/portsnare/detector"
)

// Ban says what a scan leads to.
type Ban struct {
	Evidence Evidence // what a ban has to rest on; default EvidenceOff: no bans
	TCP, UDP Reaction // to a scan over that protocol, for EvidenceClassic; default ReactOff
	DryRun   bool     // say what would be done, and do nothing; default false

	// Never is whom nothing bans. Default: only those whom the daemon finds out
	// itself.
	Never NeverBan

	// SSHPorts are the ports where administrators log in, whose peers are never
	// banned either. Default: 22. Those where an SSH server is seen are added.
	SSHPorts []uint16

	// File is PortSentry's file of banned sources, who are addresses and banned
	// for ever: all fields below FileFormat are then without effect. Default:
	// none.
	File       string
	FileFormat BanFileFormat // of File; default BanFilePortSentry2

	// For is how long a first ban lasts. Each further one of the same source
	// lasts twice as long, up to Max. [detector.Forever] is allowed. Defaults:
	// detector.DefaultBanFor; detector.DefaultBanMax, or For if that is longer.
	For, Max time.Duration

	// Memory is how long after the end of a ban it still counts as one. If it is
	// negative, all bans last For. Default: detector.DefaultBanMemory.
	Memory time.Duration

	// Grace is how long a source whom the operator unbans is not banned again. If
	// it is negative, it may be at once. Default: detector.DefaultBanGrace.
	Grace time.Duration

	IPv6Prefix int // bits of an IPv6 address that make a source; default detector.DefaultBanPrefix6
	PerMinute  int // new bans in a minute, at most; default detector.DefaultBansPerMinute
	Total      int // bans at a time, at most; default detector.DefaultMaxBans
}

// NeverBan is part of the never-ban set.
type NeverBan struct {
	Prefixes []netip.Prefix // as written: bits of the host may be set, and do not count
	Names    []string       // of hosts
}

// BanFileFormat is the form of the file of banned sources.
type BanFileFormat string

// The forms of the file of banned sources.
const (
	BanFilePortSentry2 BanFileFormat = "portsentry2" // PortSentry 2's: binary addresses, kept across restarts
	BanFilePortSentry1 BanFileFormat = "portsentry1" // PortSentry 1.2's: the lines of its history, emptied at every start
)

var banFileFormats = []BanFileFormat{BanFilePortSentry2, BanFilePortSentry1}

// Evidence says what a ban has to rest on.
type Evidence string

// The kinds of evidence.
const (
	EvidenceOff     Evidence = "off"     // nothing is enough
	EvidenceClassic Evidence = "classic" // the trigger is, as in PortSentry, though anyone can forge it
)

// A Reaction is what a scan over one protocol leads to.
type Reaction string

// The reactions, which PortSentry calls BLOCK 0, 1 and 2.
const (
	ReactOff     Reaction = "off"     // report only
	ReactBan     Reaction = "ban"     // every output acts
	ReactCommand Reaction = "command" // only the command of output.runcmd runs
)

// Policy returns how long bans last and how many there may be, where there is no
// File.
func (b Ban) Policy() detector.BanPolicy {
	return detector.BanPolicy{
		For: b.For, Max: b.Max, Memory: b.Memory, Grace: b.Grace,
		Prefix6: b.IPv6Prefix, MaxPerMinute: b.PerMinute, MaxBans: b.Total,
	}
}

// fillDefaults gives every field left at its zero value its default.
func (b *Ban) fillDefaults() {
	b.Evidence = cmp.Or(b.Evidence, EvidenceOff)
	b.TCP = cmp.Or(b.TCP, ReactOff)
	b.UDP = cmp.Or(b.UDP, ReactOff)
	b.FileFormat = cmp.Or(b.FileFormat, BanFilePortSentry2)
	b.For = cmp.Or(b.For, detector.DefaultBanFor)
	b.Max = cmp.Or(b.Max, b.defaultMax())
	b.Memory = cmp.Or(b.Memory, detector.DefaultBanMemory)
	b.Grace = cmp.Or(b.Grace, detector.DefaultBanGrace)
	b.IPv6Prefix = cmp.Or(b.IPv6Prefix, detector.DefaultBanPrefix6)
	b.PerMinute = cmp.Or(b.PerMinute, detector.DefaultBansPerMinute)
	b.Total = cmp.Or(b.Total, detector.DefaultMaxBans)
}

func (b *Ban) defaultMax() time.Duration { return max(b.For, detector.DefaultBanMax) }

// The bounds of numbers in [ban].
const (
	minBanFor     = time.Second
	minIPv6Prefix = 32      // what a provider has
	maxBans       = 1 << 20 // what outputs take
)

// banKeys are the keys of [ban].
var banKeys = map[string]setter[Config]{
	"ban.evidence": text(func(c *Config) *Evidence { return &c.Ban.Evidence }),
	"ban.tcp":      text(func(c *Config) *Reaction { return &c.Ban.TCP }),
	"ban.udp":      text(func(c *Config) *Reaction { return &c.Ban.UDP }),
	"ban.dry_run":  when(func(c *Config) *bool { return &c.Ban.DryRun }),

	"ban.never":     never,
	"ban.ssh_ports": portNumbers(func(c *Config) *[]uint16 { return &c.Ban.SSHPorts }),

	"ban.file":        text(func(c *Config) *string { return &c.Ban.File }),
	"ban.file_format": text(func(c *Config) *BanFileFormat { return &c.Ban.FileFormat }),

	"ban.for":         duration(minBanFor, detector.Forever, func(c *Config) *time.Duration { return &c.Ban.For }),
	"ban.max":         duration(minBanFor, detector.Forever, func(c *Config) *time.Duration { return &c.Ban.Max }),
	"ban.memory":      duration(0, detector.Forever, func(c *Config) *time.Duration { return &c.Ban.Memory }),
	"ban.grace":       duration(0, maxDuration, func(c *Config) *time.Duration { return &c.Ban.Grace }),
	"ban.ipv6_prefix": number(minIPv6Prefix, 128, func(c *Config) *int { return &c.Ban.IPv6Prefix }),
	"ban.per_minute":  number(1, maxBans, func(c *Config) *int { return &c.Ban.PerMinute }),
	"ban.total":       number(1, maxBans, func(c *Config) *int { return &c.Ban.Total }),
}

// policyKeys are the keys of [Ban.Policy].
var policyKeys = []string{"ban.for", "ban.max", "ban.memory", "ban.grace", "ban.ipv6_prefix", "ban.per_minute", "ban.total"}

// never sets ban.never. Each entry is an address, a prefix, or else a name.
func never(c *Config, value any) Faults {
	var entries []string
	if faults := list(func(e *[]string) *[]string { return e })(&entries, value); len(faults) > 0 {
		return faults
	}
	var (
		set    NeverBan
		faults Faults
	)
	for _, entry := range entries {
		prefix, err := parsePrefix(entry)
		switch {
		case err == nil:
			set.Prefixes = append(set.Prefixes, prefix)
		case isHostName(entry):
			set.Names = append(set.Names, entry)
		default:
			faults = append(faults, faultf("%q is no address, prefix or host name", entry))
		}
	}
	c.Ban.Never = set
	return faults
}

// parsePrefix reads an address or a prefix.
func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

// formatPrefix writes a prefix as [parsePrefix] reads it.
func formatPrefix(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// isHostName reports whether s can be the name of a host (RFC 1123, section 2.1,
// and the underscore that some have). A name that ends in a number would be an
// address cut short.
func isHostName(s string) bool {
	s = strings.TrimSuffix(s, ".")
	labels := strings.Split(s, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.Trim(label, bareKey) != "" {
			return false
		}
	}
	last := labels[len(labels)-1]
	return len(s) <= 253 && strings.Trim(last, "0123456789") != ""
}

func (c *Config) validateBan(d *diagnosis) {
	switch c.Ban.Evidence {
	case EvidenceOff:
	case EvidenceClassic:
		if !c.bans() {
			d.fault(d.at("ban.evidence"), `"classic" needs tcp or udp; set one to "ban" or "command"`)
		}
	case "pattern", "proven":
		d.fault(d.at("ban.evidence"), `%q comes with a later release; use "off" or "classic"`, c.Ban.Evidence)
	default:
		d.fault(d.at("ban.evidence"), `%q is no kind of evidence; use "off" or "classic"`, c.Ban.Evidence)
	}
	validateReaction(d, "ban.tcp", c.Ban.TCP)
	validateReaction(d, "ban.udp", c.Ban.UDP)
	if !slices.Contains(banFileFormats, c.Ban.FileFormat) {
		d.fault(d.at("ban.file_format"), `%q is no form of the file; use "portsentry2" or "portsentry1"`, c.Ban.FileFormat)
	}
	if c.Ban.Max < c.Ban.For {
		d.fault(d.at("ban.max"), "%s is shorter than a first ban (for = %q)", FormatDuration(c.Ban.Max), FormatDuration(c.Ban.For))
	}
}

func validateReaction(d *diagnosis, key string, r Reaction) {
	if !slices.Contains(reactions, r) {
		d.fault(d.at(key), `%q is no reaction; use "off", "ban" or "command"`, r)
	}
}

// wantOneKeeper records the keys that PortSentry's file of banned sources
// contradicts.
func (c *Config) wantOneKeeper(d *diagnosis) {
	if c.Ban.File == "" {
		return
	}
	for _, key := range policyKeys {
		if place, set := d.places[key]; set {
			d.fault(place, "does not go with file: what PortSentry's file holds are addresses, banned for ever; remove this key or file")
		}
	}
}

// warnOfNever says which entries of ban.never may spare more than they seem to,
// and which ports of ban.ssh_ports spare nobody.
func (c *Config) warnOfNever(d *diagnosis) {
	for _, prefix := range c.Ban.Never.Prefixes {
		network := prefix.Masked()
		switch {
		case network.Bits() == 0:
			d.warn(d.at("ban.never"), "%s keeps every %s source from being banned", prefix, family(network.Addr()))
		case network != prefix:
			d.warn(d.at("ban.never"), "%s is taken as the network %s", prefix, network)
		}
	}
	opened, _ := c.Opened()
	for _, port := range c.Ban.SSHPorts {
		if opened.Contains(port) {
			d.warn(d.at("ban.ssh_ports"), "%d is a trap port, whose peers are not spared", port)
		}
	}
}
