package capture

import (
	"net/netip"
	"slices"
)

// A Device is an interface that is captured.
type Device struct {
	Name  string
	Addrs []netip.Addr // its own, without zones, IPv4 first; possibly none
}

// Devices returns the interfaces that are captured at this moment, as the
// kernel numbers them. [Sniff] keeps them up to date.
func (s *PacketSocket) Devices() []Device {
	w := s.watch.Load()
	var devices []Device
	for _, l := range w.view.inOrder() {
		if l.up && w.rule.wants(l) {
			devices = append(devices, Device{Name: l.name, Addrs: slices.Clone(l.addrs)})
		}
	}
	return devices
}

// Unusable returns which interfaces of [SniffConfig.Names] nothing can be
// captured for at this moment: those that do not exist, are down, are left out
// or have no address.
func (s *PacketSocket) Unusable() []string {
	devices := s.Devices()
	var names []string
	for _, name := range s.watch.Load().rule.names {
		if !slices.ContainsFunc(devices, func(d Device) bool { return d.Name == name && len(d.Addrs) > 0 }) {
			names = append(names, name)
		}
	}
	return names
}
