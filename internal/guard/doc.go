// Package guard knows whom a ban must never hit: this host itself, what it
// needs to reach anyone, and the people who administer it.
//
// The never-ban set is absolute. Whoever carries out bans asks [Guard.Spared]
// last, at the moment before an output is told, whatever was decided before and
// by whom. Anyone can forge a gateway's or a resolver's address as the source of
// a scan, so without the guard a stranger could have the host cut itself off.
//
// When in doubt the guard spares: any overlap of a ban and the set counts, and
// while something cannot be read, what was known of it stays in force.
//
// What it cannot know: bans that were made before somebody came to be spared;
// whoever connected less than a second ago; servers for DHCP, NTP and the like,
// which belong on the administrator's list; and who on an SSH connection has
// logged in. So a stranger is spared, too, while he holds a connection to an
// SSH server open, but not afterwards.
package guard
